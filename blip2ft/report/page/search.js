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
  const plain = (text) => text.normalize("NFKC").toLowerCase();
  // what was said, and no labels or numbers
  const words = (card) => [...card.querySelectorAll("dd bdi, h4 bdi, .id bdi")].map((said) => said.textContent);
  const cards = [...document.querySelectorAll(".sample")].map((card) => [card, plain(words(card).join("\n"))]);
  const groups = [...document.querySelectorAll(".group")].filter((group) => group !== others);
  const texts = answers.map((one) => plain([one.image, one.question, ...one.references, ...one.answers].join("\n")));
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
  const cardOf = ({ image, question, references, answers: said }) => {
    const list = document.createElement("dl");
    said.forEach((text, place) => list.append(told(names[place], text, `answer of-${place + 1}`)));
    for (const text of references) list.append(told(question ? "people" : "reference", text));
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
    const asked = plain(input.value).split(/\s+/).filter(Boolean);
    const fits = (text) => asked.every((word) => text.includes(word));
    let shown = 0;
    for (const [card, text] of cards) {
      card.hidden = !fits(text);
      shown += !card.hidden;
    }
    for (const group of groups) group.hidden = !group.querySelector(".sample:not([hidden])");
    const more = asked.length ? answers.filter((_, place) => fits(texts[place])) : [];
    others.hidden = !more.length;
    found.replaceChildren(...more.slice(0, LISTED).map(cardOf));
    const { searched, samples } = count.dataset;
    const all = number(Number(samples));
    const among = searched === samples ? all : `${number(Number(searched))} that are searched, of ${all}`;
    const cut = more.length > LISTED ? `; ${LISTED} of those without a picture are listed` : "";
    count.textContent = asked.length
      ? `${number(shown + more.length)} of ${among} answers${cut}`
      : `${number(shown)} of ${all} answers are shown; a search looks at ${searched === samples ? "all" : number(Number(searched))}`;
  };
  input.addEventListener("input", search);
  box.hidden = false;
  search();
})();
