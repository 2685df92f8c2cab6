// What scrolls sideways can be reached with the keyboard and says what it is; a fold says what it folds.

// The theme makes a stop for the keyboard of these when they are wider or higher than their place.
const BOXES = ".pst-scrollable-table-container, .cell_output > .output, .jp-RenderedHTMLCommon";

function reachable() {
  for (const box of document.querySelectorAll('mjx-container[display="true"], .bd-content figure')) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
  document.querySelectorAll(BOXES).forEach((box, number) => {
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) {
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", `${box.querySelector("table") ? "Table" : "Output"} ${number + 1} of this page`);
    } else {
      box.removeAttribute("role");
      box.removeAttribute("aria-label");
    }
  });
}

// The theme's buttons are all called "Toggle hidden content"; whether they are open they say themselves.
function nameFolds() {
  for (const button of document.querySelectorAll("button.toggle-button")) {
    const title = button.closest(".admonition-title");
    if (title) button.setAttribute("aria-label", title.textContent.trim());
  }
}

window.addEventListener("load", () => {
  nameFolds();
  reachable();
  window.MathJax?.startup?.promise?.then(reachable);
});
window.addEventListener("resize", reachable);
