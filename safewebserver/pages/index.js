"use strict";
// The modules of this server, looked at every two seconds. Text only: nothing of an answer is ever markup.
const table = document.getElementById("modules");
const verdicts = document.getElementById("verdicts");

function row(cells, tag, color) {
  const line = document.createElement("tr");
  for (const text of cells) {
    const cell = document.createElement(tag);
    cell.textContent = text;
    line.append(cell);
  }
  if (color) line.children[3].className = color;
  return line;
}

async function show() {
  try {
    const answer = await fetch("/api/v1/modules", { cache: "no-store" });
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.text);
    table.replaceChildren(row(["Module", "Id", "Mode", "State", "Remote"], "th"),
      ...data.modules.map(m => row([m.module, m.id, m.mode || "-", `${m.state} ${m.color}`,
        `${m.remote_state} ${m.remote_color}`.trim() || "-"], "td", m.color)));
    verdicts.textContent = data.modules.length
      ? data.modules.map(m => `${m.module} is ${m.verdict.kind}.`).join(" ")
      : "No module is installed on this server.";
  } catch (error) {
    verdicts.textContent = `The server does not answer: ${error.message}`;
  }
  setTimeout(show, 2000);
}
show();
