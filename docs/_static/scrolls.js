// Tables and pictures that are wider than the screen say so, and can be scrolled by the keyboard.
addEventListener("load", () => {
  for (const picture of document.querySelectorAll(".content p > img"))
    picture.classList.toggle("wide", picture.naturalWidth > 800); // pixels: figures with words in them
  const boxes = document.querySelectorAll(".table-wrapper, p:has(> img.wide)");
  const look = new ResizeObserver(entries => {
    for (const { target } of entries) {
      const scrolls = target.scrollWidth > target.clientWidth;
      target.classList.toggle("scrolls", scrolls);
      scrolls ? target.tabIndex = 0 : target.removeAttribute("tabindex");
    }
  });
  boxes.forEach(box => look.observe(box));
});
