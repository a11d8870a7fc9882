# An image with only the static program `pillarbox`: no shell, no package manager, no root.
#
#   docker build -t pillarbox .
#   docker run --rm -e DATABASE_URL -e NATS_URL -p 127.0.0.1:9464:9464 pillarbox
FROM rust:1.94-alpine AS build
RUN apk add --no-cache ca-certificates musl-dev
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package pillarbox-cli --bin pillarbox \
    && cp target/release/pillarbox /pillarbox

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /pillarbox /pillarbox
USER 65532:65532
# A container has its own loopback, so listen on all addresses. Publish the port only where operators can reach it.
ENV PILLARBOX_HTTP=0.0.0.0:9464 PILLARBOX_LOG_FORMAT=json
EXPOSE 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["/pillarbox"]
CMD ["relay"]
