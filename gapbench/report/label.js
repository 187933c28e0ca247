"use strict";
(async () => {
  const by = (id) => document.getElementById(id);
  const words = ["yes", "no", "unsure"];
  const keys = { y: "yes", 1: "yes", n: "no", 0: "no", u: "unsure", "?": "unsure" };
  const image = by("image");
  let texts, images, given, at = 0, saving = false;

  const open = (from) => {
    const later = given.findIndex((word, item) => item >= from && word === null);
    return later >= 0 ? later : given.indexOf(null);
  };

  function show() {
    const done = given.filter((word) => word !== null).length;
    by("progress").textContent = `${done} of ${texts.length} labelled; this is number ${at + 1}.`;
    by("prompt").textContent = texts[at];
    image.src = "image/" + images[at];
    image.hidden = false;
    for (const word of words) {
      by(word).disabled = false;
      by(word).setAttribute("aria-pressed", String(given[at] === word));
    }
    by("back").disabled = at === 0;
    by("forward").disabled = at + 1 === texts.length;
    by("next").disabled = done === texts.length;
    if (done === texts.length) by("status").textContent = "All are labelled. You may close this page.";
    const ahead = open(at + 1);
    if (ahead >= 0) new Image().src = "image/" + images[ahead];
  }

  function go(item) {
    if (saving || item < 0 || item >= texts.length) return;
    at = item;
    by("status").textContent = "";
    show();
  }

  async function answer(label) {
    if (saving || !given) return;
    saving = true;
    const item = at;
    try {
      const reply = await fetch("label", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ item, label }),
      });
      if (!reply.ok) throw new Error((await reply.json()).error);
      given[item] = label;
      at = Math.max(open(item + 1), 0);
      if (given[at] !== null) at = item;
      by("status").textContent = `Saved: ${label}.`;
      show();
    } catch (error) {
      by("status").textContent = `Not saved (${error.message}). Is gapbench label still running?`;
    } finally {
      saving = false;
    }
  }

  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 256));
  image.addEventListener("error", () => { by("status").textContent = "This image cannot be read; give no answer."; });
  for (const word of words) by(word).addEventListener("click", () => answer(word));
  const moves = { back: () => go(at - 1), forward: () => go(at + 1), next: () => go(open(at + 1)) };
  for (const [id, move] of Object.entries(moves)) by(id).addEventListener("click", move);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !given) return;
    const pressed = event.key.toLowerCase();
    if (keys[pressed]) answer(keys[pressed]);
    else if (event.key === "ArrowLeft" || event.key === "Backspace") moves.back();
    else if (event.key === "ArrowRight") moves.forward();
    else if (pressed === "g") moves.next();
    else return;
    event.preventDefault();
  });

  try {
    ({ texts, images, given } = await (await fetch("items")).json());
    at = Math.max(open(0), 0);
    show();
  } catch (error) {
    by("progress").textContent = `The images cannot be listed (${error.message}).`;
  }
})();
