"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

  // One tooltip for every mark that carries its numbers.
  const tip = $("#tip");
  const place = (event) => {
    const margin = 12, box = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + margin, innerWidth - box.width - margin);
    const below = event.clientY + margin + 6;
    const y = below + box.height > innerHeight ? event.clientY - box.height - margin : below;
    tip.style.left = `${Math.max(margin, x)}px`;
    tip.style.top = `${Math.max(margin, y)}px`;
  };
  document.addEventListener("pointermove", (event) => {
    const target = event.target instanceof Element ? event.target.closest("[data-tip], [data-v]") : null;
    if (!target) { tip.hidden = true; return; }
    tip.textContent = target.dataset.tip ?? `value ${target.dataset.v}`;
    tip.hidden = false;
    place(event);
  });
  document.addEventListener("pointerleave", () => { tip.hidden = true; });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // Light and dark: the system's choice until the reader makes one.
  $("#scheme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.colorScheme = dark ? "light" : "dark";
  });

  // Tables that sort by a click on a heading: numbers downwards first, words upwards.
  for (const table of $$("table.sortable")) {
    const headings = $$("thead th", table), body = $("tbody", table);
    headings.forEach((heading, column) => heading.addEventListener("click", () => {
      const cell = (row) => row.cells[column];
      const numeric = cell(body.rows[0]).dataset.sort !== undefined;
      const before = heading.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numeric;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = numeric
        ? (a, b) => Number(cell(a).dataset.sort) - Number(cell(b).dataset.sort)
        : (a, b) => cell(a).textContent.localeCompare(cell(b).textContent);
      body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * compare(a, b)));
    }));
  }

  const search = $("#search");
  if (!search) return;
  const lists = $$(".latents"), cards = $$(".latent"), jump = $("#jump"), order = $("#order"), count = $("#count");
  const text = new Map(cards.map((card) => [card, card.textContent.toLowerCase().replace(/\s+/g, " ")]));
  const chosen = { dictionary: lists[0].dataset.dictionary, group: "" };

  const show = () => {
    const words = search.value.toLowerCase().trim().replace(/\s+/g, " ");
    let shown = 0, total = 0;
    for (const list of lists) list.hidden = list.dataset.dictionary !== chosen.dictionary;
    for (const card of $$(".latent", lists.find((list) => !list.hidden))) {
      const inGroup = !chosen.group || card.dataset.groups.split(" ").includes(chosen.group);
      card.hidden = !inGroup || !text.get(card).includes(words);
      total += 1;
      shown += card.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${total} shown`;
    $("#nothing").hidden = shown > 0;
    for (const button of $$(".segments button")) {
      const [key, value] = Object.entries(button.dataset)[0];
      button.setAttribute("aria-pressed", String(chosen[key] === value));
    }
  };
  const sort = () => {
    const sign = order.value === "latent" ? 1 : -1;
    for (const list of lists) {
      list.append(...$$(".latent", list).sort((a, b) => sign * (Number(a.dataset[order.value]) - Number(b.dataset[order.value]))));
    }
  };
  const open = (card) => {
    chosen.dictionary = card.parentElement.dataset.dictionary;
    if (card.hidden || card.parentElement.hidden) { chosen.group = ""; search.value = ""; show(); }
    card.focus({ preventScroll: true });
    // Cards out of sight have an estimated height until they are drawn, so the first jump may land a little off.
    card.scrollIntoView({ block: "start" });
    requestAnimationFrame(() => requestAnimationFrame(() => card.scrollIntoView({ block: "start" })));
  };
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.classList.contains("latent")) open(target);
  };

  for (const button of $$(".segments button")) {
    button.addEventListener("click", () => { Object.assign(chosen, button.dataset); show(); });
  }
  search.addEventListener("input", show);
  order.addEventListener("change", sort);
  jump.addEventListener("change", () => {
    const latent = jump.value.replace(/\D/g, "");
    const card = document.getElementById(`${chosen.dictionary}-latent-${latent}`);
    jump.setCustomValidity(latent && !card ? `Latent ${latent} is not on this page` : "");
    jump.reportValidity();
    if (card) { history.replaceState(null, "", `#${card.id}`); open(card); }
  });
  jump.addEventListener("input", () => jump.setCustomValidity(""));
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(input|select|textarea)$/i.test(event.target.tagName)) { event.preventDefault(); search.focus(); }
    if (event.key === "Escape" && event.target === search) { search.value = ""; show(); search.blur(); }
  });
  $("#latents").addEventListener("click", (event) => {
    const whole = event.target.closest(".whole");
    if (whole) {
      const on = $(".contexts", whole.parentElement).classList.toggle("whole-on");
      whole.setAttribute("aria-expanded", String(on));
      whole.textContent = on ? "Show one line each" : "Show whole contexts";
      return;
    }
    const context = event.target.closest(".contexts li");
    if (context && !getSelection().toString()) context.classList.toggle("open");
  });
  addEventListener("hashchange", follow);

  // The section being read, marked in the bar.
  const links = new Map($$(".bar a").map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      for (const link of links.values()) link.classList.remove("here");
      links.get(entry.target.id)?.classList.add("here");
    }
  }, { rootMargin: "-30% 0px -65% 0px" });
  for (const section of $$("main > section")) seen.observe(section);

  sort();
  show();
  follow();
})();
