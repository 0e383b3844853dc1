// Keys, and a sign of life for the question that this page holds. Everything
// else is a plain form: the page works without this file.
"use strict";

const answer = document.getElementById("answer");
const typed = document.getElementById("typed");

function send(name) {
  const form = document.getElementById(name);
  if (form) form.requestSubmit();
}

function choose(number) {
  const choice = answer && answer.querySelector(
    `input[name=choice][value="${number - 1}"]`);
  if (!choice) return;
  choice.checked = true;
  typed.value = "";
  choice.scrollIntoView({block: "nearest"});
}

function tell(text) {
  let notice = document.querySelector(".notice");
  if (!notice) {
    notice = document.createElement("p");
    document.querySelector("header").after(notice);
  }
  notice.className = "notice bad";
  notice.textContent = text + " ";
  const next = document.createElement("a");
  next.href = "/?page=" + encodeURIComponent(answer.elements.page.value);
  next.textContent = "Next question";
  notice.append(next);
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (event.target === typed) {
    if (event.key === "Escape") typed.blur();
    return;
  }
  const key = event.key.toLowerCase();
  if (/^[1-9]$/.test(key)) choose(Number(key));
  else if (key === "a" && typed) { typed.focus(); event.preventDefault(); }
  else if (key === "s") send("skip");
  else if (key === "u") send("undo");
  else if (key === "enter" && answer && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    send("answer");
  }
});

if (typed) {
  typed.addEventListener("input", () => {
    for (const choice of answer.querySelectorAll("input[name=choice]"))
      choice.checked = false;
  });
  for (const choice of answer.querySelectorAll("input[name=choice]"))
    choice.addEventListener("change", () => { typed.value = ""; });
}

// One form is sent once, whatever key is held down.
for (const form of document.forms)
  form.addEventListener("submit", event => {
    if (document.body.dataset.sent) event.preventDefault();
    document.body.dataset.sent = "yes";
  });
addEventListener("pageshow", () => { delete document.body.dataset.sent; });

const WHY = {
  elsewhere: "Another page has this question now.",
  answered: "The question was answered in another page.",
  skipped: "The question was skipped in another page.",
  closed: "The run went on without this label. An answer is still kept for when it asks again.",
};

async function renew() {
  let said;
  try {
    const reply = await fetch("/renew", {
      method: "POST", body: new URLSearchParams(new FormData(answer))});
    said = reply.ok ? await reply.text() : "";
  } catch {
    tell("The page's server does not answer: start 'saw annotate' again.");
    return;
  }
  if (WHY[said]) tell(WHY[said]);
}
if (answer) setInterval(renew, 10000);
