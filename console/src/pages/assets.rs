//! The style and the script.

use axum::http::header;
use axum::response::IntoResponse;

/// They change with the program, and hold no secret.
const CACHE: &str = "no-cache";

pub(crate) async fn style() -> impl IntoResponse {
    let headers =
        [(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, CACHE)];
    (headers, include_str!("../../assets/console.css"))
}

pub(crate) async fn script() -> impl IntoResponse {
    let headers =
        [(header::CONTENT_TYPE, "text/javascript; charset=utf-8"), (header::CACHE_CONTROL, CACHE)];
    (headers, include_str!("../../assets/console.js"))
}
