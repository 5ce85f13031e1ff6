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
