window.beginPage = function () {
  "use strict";
  if (window.drawCurves) { window.drawCurves(); }
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
  document.querySelectorAll(".cases").forEach(function (cases) {
    var shown = cases.querySelectorAll(".case"), choice = cases.querySelector("select");
    function show(number) {
      choice.selectedIndex = (number + shown.length) % shown.length;
      shown.forEach(function (one, place) { one.hidden = place !== choice.selectedIndex; });
    }
    choice.addEventListener("change", function () { show(choice.selectedIndex); });
    cases.querySelector(".before").addEventListener("click", function () { show(choice.selectedIndex - 1); });
    cases.querySelector(".after").addEventListener("click", function () { show(choice.selectedIndex + 1); });
    show(0);
  });
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
};
window.beginPage();
