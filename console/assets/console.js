// The console's only script. Every page can be read without it. It does two things: it fetches an open page again when
// the server says that there is something newer, and it keeps the place of whoever reads it.
"use strict";
(() => {
  const body = document.body;
  const notice = document.getElementById("connection");
  if (!("live" in body.dataset) || !window.EventSource) return;
  const mark = document.getElementById("live");
  let fetching = false;

  // Nothing is replaced under the hands of somebody who fills in a form, selects text, or has opened something.
  const busy = () => {
    const at = document.activeElement;
    const main = document.getElementById("main");
    const types = at && main.contains(at) && /^(INPUT|SELECT|TEXTAREA)$/.test(at.tagName);
    const selects = String(window.getSelection() || "") !== "";
    return types || selects || main.querySelector("details[open]") !== null;
  };

  const refresh = async () => {
    if (fetching || document.hidden || busy()) return;
    fetching = true;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 403) {
        location.reload();
        return;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const newer = page.getElementById("main");
      const main = document.getElementById("main");
      if (!newer || busy()) return;
      const focused = [...main.querySelectorAll("a, button, [tabindex]")].indexOf(document.activeElement);
      main.replaceChildren(...newer.childNodes);
      if (focused >= 0) {
        const again = main.querySelectorAll("a, button, [tabindex]")[focused];
        if (again) again.focus({ preventScroll: true });
      }
      notice.hidden = true;
    } catch {
      notice.hidden = false;
    } finally {
      fetching = false;
    }
  };

  // Work in progress is looked at more often.
  setInterval(() => { if (document.querySelector("[data-soon]")) refresh(); }, 1000);

  const events = new EventSource(body.dataset.base + "/live");
  events.addEventListener("open", () => {
    notice.hidden = true;
    if (mark) mark.hidden = false;
  });
  events.addEventListener("newer", refresh);
  // The server ends each stream after a while, and the browser opens another one. That alone is no trouble.
  events.addEventListener("error", () => { setTimeout(refresh, 1000); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
})();
