(function () {
  "use strict";
  var tabs = Array.prototype.slice.call(document.querySelectorAll("[role=tab]"));
  function panel(tab) { return document.getElementById(tab.getAttribute("aria-controls")); }
  function choose(chosen) {
    tabs.forEach(function (tab) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      panel(tab).hidden = tab !== chosen;
    });
  }
  tabs.forEach(function (tab, place) {
    tab.addEventListener("click", function () { choose(tab); });
    tab.addEventListener("keydown", function (event) {
      var step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) { return; }
      var next = tabs[(place + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  });
  document.querySelectorAll("button.copy").forEach(function (button) {
    button.addEventListener("click", function () {
      var range = document.createRange(), selection = window.getSelection();
      range.selectNodeContents(button.parentNode.querySelector("pre"));
      selection.removeAllRanges();
      selection.addRange(range);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl-C";
    });
  });
  document.querySelectorAll(".parallel").forEach(function (chart) {
    var read = chart.querySelector(".read"), slider = chart.querySelector("input"), trials = chart.querySelectorAll(".trial");
    trials.forEach(function (trial) {
      trial.addEventListener("mouseenter", function () { read.textContent = trial.dataset.words; });
    });
    slider.addEventListener("input", function () {
      chart.querySelector("output").textContent = slider.value;
      trials.forEach(function (trial) { trial.classList.toggle("off", Number(trial.dataset.rank) > Number(slider.value)); });
    });
  });
  if (tabs.length) { choose(tabs[0]); }
  var box = document.getElementById("only-differing");
  if (box) {
    var show = function () {
      document.querySelectorAll("#configuration tbody tr").forEach(function (row) {
        row.hidden = box.checked && !row.classList.contains("differs");
      });
    };
    box.addEventListener("change", show);
    show();
  }
})();
