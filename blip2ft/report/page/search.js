"use strict";
// Shows the answers that have all the words, and of those without a picture the first few.
(() => {
  const LISTED = 40;
  const box = document.getElementById("search");
  const data = document.getElementById("other-answers");
  if (!box || !data) return;
  const { names, answers } = JSON.parse(data.textContent);
  const input = document.getElementById("words");
  const count = document.getElementById("count");
  const others = document.getElementById("others");
  const found = document.getElementById("found");
  const plain = (text) => text.normalize("NFKC").toLocaleLowerCase();
  const cards = [...document.querySelectorAll(".sample")].map((card) => [card, plain(card.textContent)]);
  const groups = [...document.querySelectorAll(".group")].filter((group) => group !== others);
  const texts = answers.map((said) => plain(said.join("\n")));
  const number = (value) => value.toLocaleString("en");

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const told = (term, text, kind) => {
    const row = element("div", "", kind);
    const value = element("dd", "");
    value.append(element("bdi", text));
    row.append(element("dt", term), value);
    return row;
  };
  const cardOf = ([image, question, reference, ...said]) => {
    const list = document.createElement("dl");
    said.forEach((text, place) => list.append(told(names[place], text, `answer of-${place + 1}`)));
    list.append(told(question ? "people" : "reference", reference));
    const inside = element("div", "", "said");
    if (question) inside.append(element("h4", question));
    inside.append(list, element("p", image, "id"));
    const article = element("article", "");
    article.append(inside);
    const item = element("li", "", "sample");
    item.append(article);
    return item;
  };

  const search = () => {
    const words = plain(input.value).split(/\s+/).filter(Boolean);
    const fits = (text) => words.every((word) => text.includes(word));
    let shown = 0;
    for (const [card, text] of cards) {
      card.hidden = !fits(text);
      shown += !card.hidden;
    }
    for (const group of groups) group.hidden = !group.querySelector(".sample:not([hidden])");
    const more = words.length ? answers.filter((_, place) => fits(texts[place])) : [];
    others.hidden = !more.length;
    found.replaceChildren(...more.slice(0, LISTED).map(cardOf));
    const all = Number(count.dataset.all);
    const some = all < Number(count.dataset.samples) ? `the first ${number(all)}` : number(all);
    const cut = more.length > LISTED ? `, of which ${LISTED} are listed` : "";
    count.textContent = words.length
      ? `${number(shown + more.length)} of ${some} answers: ${number(shown)} with a picture, ${number(more.length)} without${cut}`
      : `${number(shown)} answers with a picture; a search looks at ${some}`;
  };
  input.addEventListener("input", search);
  box.hidden = false;
  search();
})();
