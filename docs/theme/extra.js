// Formulas by KaTeX, and diagrams by mermaid, which is loaded on pages that have one.
document.addEventListener("DOMContentLoaded", () => {
  if (window.renderMathInElement)
    for (const each of document.querySelectorAll(".arithmatex"))
      renderMathInElement(each, { delimiters: [
        { left: "\\[", right: "\\]", display: true },
        { left: "\\(", right: "\\)", display: false },
      ] });

  // What scrolls can be reached by the keyboard, and the search has a name.
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const each of document.querySelectorAll("pre > code, .md-typeset__scrollwrap, .arithmatex, .diagram")) each.tabIndex = 0;

  const diagrams = [...document.querySelectorAll(".diagram")];
  if (!diagrams.length) return;
  const texts = diagrams.map((each) => each.textContent);
  const here = document.querySelector('script[src*="theme/extra.js"]').src;
  const script = document.createElement("script");
  script.src = new URL("../bundled/mermaid.min.js", here);
  const draw = async () => {
    const dark = document.body.getAttribute("data-md-color-scheme") === "slate";
    mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "neutral", fontFamily: "Inter, sans-serif" });
    for (const [number, each] of diagrams.entries())
      each.innerHTML = (await mermaid.render(`diagram-${number}`, texts[number])).svg;
  };
  script.onload = () => {
    draw();
    new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
  };
  document.head.append(script);
});
