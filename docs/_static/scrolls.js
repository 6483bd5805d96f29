// Tables and pictures that are wider than the screen say so, and can be scrolled by the keyboard.
addEventListener("load", () => {
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
