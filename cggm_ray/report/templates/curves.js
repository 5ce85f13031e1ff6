(function () {
  "use strict";
  var dashes = [[], [8, 4], [2, 3], [10, 3, 2, 3], [4, 4], [14, 4], [6, 2, 2, 2, 2, 2], [3, 6]];
  var plots = [];
  function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  function ink(name) { return function () { return colour(name); }; }
  function short(value) {
    if (value === null || value === undefined) { return "-"; }
    var number = Number(value.toPrecision(4)), size = Math.abs(number);
    // Beside an axis there is room for eight characters.
    return size >= 1e5 || size > 0 && size < 1e-3 ? number.toExponential() : String(number);
  }
  function span(low, high) { return function () { return [low, high]; }; }
  function draw(figure) {
    var spec = JSON.parse(figure.dataset.chart), place = figure.querySelector(".canvas"), legend = figure.querySelector(".legend");
    var fixed = spec.low !== null && spec.high !== null;
    var scales = {x: {time: false}, y: spec.linear !== null ? {distr: 4, asinh: spec.linear} : {}};
    if (spec.low !== null || spec.high !== null) {
      scales.y.range = function (plot, low, high) {
        var margin = (high - low || Math.abs(high) || 1) * 0.06;
        return [spec.low === null ? low - margin : spec.low, spec.high === null ? high + margin : spec.high];
      };
    }
    if (spec.scatter && fixed) { scales.x.range = span(spec.low, spec.high); }
    else if (spec.x.length === 1) { scales.x.range = span(spec.x[0] - 1, spec.x[0] + 1); }
    var look = {stroke: ink("--ink"), grid: {stroke: ink("--faint"), width: 1}, ticks: {stroke: ink("--edge"), width: 1}, font: "12px system-ui,sans-serif"};
    var across = Object.assign({label: spec.x_label, labelFont: "13px system-ui,sans-serif", labelSize: 22, size: 32}, look);
    if (!spec.scatter) { across.incrs = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]; across.space = 40; }
    var up = Object.assign({size: 62, values: function (plot, ticks) { return ticks.map(function (v) { return v === null ? "" : short(v); }); }}, look);
    var buttons = [], values = [];
    var series = [{label: spec.x_label}].concat(spec.lines.map(function (line) {
      var one = {label: line.label, stroke: ink("--m" + line.style % 8), width: 2, dash: dashes[line.style % 8],
        points: {show: spec.scatter || spec.x.length <= 30, size: spec.scatter ? 6 : 5}};
      if (spec.scatter) { one.paths = function () { return null; }; }
      return one;
    }));
    function read(plot) {
      var at = plot.cursor.idx;
      values.forEach(function (output, number) {
        var shown = at === null || at === undefined ? "" : " " + short(plot.data[number + 1][at]);
        output.textContent = shown;
      });
      var where = at === null || at === undefined ? "Point at the picture for values; drag to zoom, double-click to go back." : spec.x_label + " " + short(plot.data[0][at]);
      figure.querySelector(".read").textContent = where;
    }
    function extra(plot) {
      var c = plot.ctx, ratio = uPlot.pxRatio, box = plot.bbox;
      c.save();
      c.beginPath();
      c.rect(box.left, box.top, box.width, box.height);
      c.clip();
      c.strokeStyle = colour("--edge");
      c.fillStyle = colour("--ink");
      c.lineWidth = 1.5 * ratio;
      c.setLineDash([3 * ratio, 4 * ratio]);
      c.beginPath();
      if (spec.scatter) {
        c.moveTo(plot.valToPos(spec.low, "x", true), plot.valToPos(spec.low, "y", true));
        c.lineTo(plot.valToPos(spec.high, "x", true), plot.valToPos(spec.high, "y", true));
      }
      if (spec.mark) {
        var x = plot.valToPos(spec.mark[0], "x", true), right = x > box.left + box.width / 2;
        c.moveTo(x, box.top);
        c.lineTo(x, box.top + box.height);
        c.font = 12 * ratio + "px system-ui,sans-serif";
        c.textAlign = right ? "right" : "left";
        c.fillText(spec.mark[1], x + (right ? -5 : 5) * ratio, box.top + 13 * ratio);
      }
      c.stroke();
      c.restore();
    }
    legend.textContent = place.textContent = "";
    spec.lines.forEach(function (line, number) {
      var button = document.createElement("button"), output = document.createElement("span"), sign = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      sign.setAttribute("width", "34");
      sign.setAttribute("height", "10");
      sign.setAttribute("aria-hidden", "true");
      sign.innerHTML = spec.scatter ? "<circle cx='17' cy='5' r='3.5' fill='none' stroke-width='2'/>" : "<line x1='0' y1='5' x2='34' y2='5' stroke-width='3' stroke-dasharray='" + dashes[line.style % 8].join(" ") + "'/>";
      sign.style.stroke = "var(--m" + line.style % 8 + ")";
      output.className = "at";
      button.append(sign, " " + line.label, output);
      button.addEventListener("click", function () {
        var on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        plot.setSeries(number + 1, {show: on});
      });
      buttons.push(button);
      values.push(output);
      legend.append(button);
    });
    var plot = new uPlot({width: place.clientWidth, height: spec.scatter ? Math.min(420, place.clientWidth) : 250, legend: {show: false},
      cursor: {drag: {x: true, y: !!spec.scatter}, points: {size: 9}}, scales: scales, axes: [across, up], series: series,
      hooks: {setCursor: [read], draw: [extra]}}, [spec.x].concat(spec.lines.map(function (line) { return line.values; })), place);
    read(plot);
    plots.push(plot);
    new ResizeObserver(function () {
      if (place.clientWidth && place.clientWidth !== plot.width) { plot.setSize({width: place.clientWidth, height: plot.height}); }
    }).observe(place);
  }
  window.drawCurves = function () {
    plots.splice(0).forEach(function (plot) { plot.destroy(); });
    document.querySelectorAll(".curves").forEach(draw);
  };
  ["(prefers-color-scheme:dark)", "print"].forEach(function (query) {
    window.matchMedia(query).addEventListener("change", function () { plots.forEach(function (plot) { plot.redraw(false); }); });
  });
})();
