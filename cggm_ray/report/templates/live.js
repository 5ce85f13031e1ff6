(function () {
  "use strict";
  var stamp = "{{ live }}", busy = false;
  function text(answer) { return answer.text(); }
  window.setInterval(function () {
    if (busy) { return; }
    busy = true;
    fetch("stamp").then(text).then(function (now) {
      if (now === stamp) { return null; }
      return fetch(".").then(text).then(function (found) {
        var page = new DOMParser().parseFromString(found, "text/html");
        var opened = [].map.call(document.querySelectorAll("details"), function (one) { return one.open; });
        document.querySelector("main").replaceWith(page.querySelector("main"));
        document.querySelectorAll("details").forEach(function (one, place) { one.open = !!opened[place]; });
        stamp = now;
        window.beginPage();
      });
    }).catch(function () { return null; }).then(function () { busy = false; });
  }, 2000);
})();
