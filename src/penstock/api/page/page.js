"use strict";
const $ = (id) => document.getElementById(id);
const SAMPLES = 60;
const TOOLS = [{ type: "function", function: { name: "weather", description: "The weather of a place.", parameters: {
  type: "object", properties: { place: { type: "string" }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["place"], additionalProperties: false } } }];
let model = "", mode = "chat", turns = [], running = null, owed = null;

async function json(path) {
  const answer = await fetch(path);
  if (!answer.ok && answer.status !== 503) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function learn() {
  const card = (await json("/v1/models")).data[0];
  model = card.id;
  $("model").textContent = card.id;
  $("context").textContent = card.max_model_len.toLocaleString("en") + " tokens";
  $("exactness").textContent = card.exactness;
  $("fingerprint").textContent = card.system_fingerprint;
  const { plan } = await json("/v1/plan");
  for (const [name, value] of Object.entries(plan)) {
    const row = $("plan").tBodies[0].insertRow();
    row.insertCell().textContent = name.replaceAll("_", " ");
    row.insertCell().textContent = value;
  }
  example();
}

// Prometheus' text: the sum over all labels of each name.
function readMetrics(text) {
  const sums = {};
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const at = line.lastIndexOf(" ");
    const name = line.slice(0, at).split("{")[0];
    sums[name] = (sums[name] || 0) + Number(line.slice(at + 1));
  }
  return sums;
}

const series = { output: [], prompt: [], running: [], waiting: [], kv: [], answers: [] };
let before = null;

function draw(name, value, text) {
  const values = series[name];
  values.push(value);
  if (values.length > SAMPLES) values.shift();
  $("v-" + name).textContent = text;
  const top = Math.max(1e-9, ...values) * 1.1;
  const points = values.map((v, i) => [(120 * (i + SAMPLES - values.length)) / (SAMPLES - 1), 35 - (33 * v) / top]);
  const line = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const graph = $("g-" + name);
  if (!graph.firstChild) {
    for (const kind of ["under", ""]) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      if (kind) path.classList.add(kind);
      graph.append(path);
    }
  }
  graph.children[0].setAttribute("d", `${line}L120 36L${points[0][0].toFixed(1)} 36Z`);
  graph.children[1].setAttribute("d", line);
}

async function look() {
  const started = performance.now();
  try {
    const [health, text] = await Promise.all([json("/health"), fetch("/metrics").then((a) => a.text())]);
    const now = { at: started / 1000, ...readMetrics(text) };
    $("state").textContent = health.ready ? "ready" : health.reasons.join("; ") || health.status;
    $("state").className = "state " + (health.ready ? "ready" : "away");
    const rate = (name) => (before ? Math.max(0, (now[name] || 0) - (before[name] || 0)) / (now.at - before.at) : 0);
    const output = rate("vllm:generation_tokens_total"), prompt = rate("vllm:prompt_tokens_total");
    draw("output", output, output.toFixed(output < 10 ? 1 : 0));
    draw("prompt", prompt, prompt.toFixed(prompt < 10 ? 1 : 0));
    draw("running", health.num_running, health.num_running);
    draw("waiting", health.num_queued, health.num_queued);
    draw("kv", health.kv_usage, (100 * health.kv_usage).toFixed(1) + " %");
    const done = before ? (now["vllm:request_success_total"] || 0) - (before["vllm:request_success_total"] || 0) : 0;
    const lately = series.answers.reduce((sum, v) => sum + v, 0) + done;
    draw("answers", done, lately);
    before = now;
  } catch (error) {
    $("state").textContent = "no answer";
    $("state").className = "state away";
  }
  setTimeout(look, Math.max(200, 1000 - (performance.now() - started)));
}

function say(kind, text) {
  $("talk").querySelector(".empty")?.remove();
  const line = document.createElement("p");
  line.className = kind;
  line.textContent = text;
  $("talk").append(line);
  line.scrollIntoView({ block: "end" });
  return line;
}

// The tools as they were typed; null: none. Throws what is wrong with them.
function tools() {
  const text = $("tools").value.trim();
  if (mode !== "chat" || !text) return null;
  const list = JSON.parse(text);
  if (!Array.isArray(list)) throw new Error("give a list: [{...}]");
  return list.length ? list : null;
}

function checkTools() {
  try {
    tools();
    $("tools-fault").textContent = "";
    return true;
  } catch (error) {
    $("tools-fault").textContent = `no JSON list of tools: ${error.message}`;
    return false;
  }
}

// `more`: a text to continue, or the messages that follow the turns so far.
function body(more) {
  const asked = { model, max_tokens: Number($("max-tokens").value) || 128, temperature: Number($("temperature").value) };
  if ($("seed").value !== "") asked.seed = Number($("seed").value);
  if ($("shape").value === "json") asked.structured_outputs = { json_object: true };
  if (mode === "chat") asked.messages = [...turns, ...more];
  else asked.prompt = more;
  const given = tools();
  if (given) Object.assign(asked, { tools: given, tool_choice: $("tool-choice").value });
  return asked;
}

const path = () => (mode === "chat" ? "/v1/chat/completions" : "/v1/completions");

function example() {
  if (!checkTools()) return;
  const typed = $("prompt").value || "Hello";
  const more = mode === "chat" ? [{ role: "user", content: typed }] : typed;
  const asked = JSON.stringify(body(more), null, 2).replaceAll("'", "'\\''");
  $("curl").textContent = `curl ${location.origin}${path()} -H 'content-type: application/json' -d '${asked}'`;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let at;
    while ((at = held.indexOf("\n\n")) >= 0) {
      const data = held.slice(0, at).split("\n").find((line) => line.startsWith("data: "));
      held = held.slice(at + 2);
      if (data && data !== "data: [DONE]") yield JSON.parse(data.slice(6));
    }
  }
}

// The calls of an answer, as they stream: a box each, the name and what has come of the arguments.
function takeCalls(calls, deltas, before) {
  for (const delta of deltas) {
    let call = calls[delta.index];
    if (!call) {
      const box = Object.assign(document.createElement("div"), { className: "call" });
      const code = box.appendChild(document.createElement("code"));
      const name = code.appendChild(document.createElement("b"));
      const rest = code.appendChild(document.createElement("span"));
      (calls.at(-1)?.box || before).after(box);
      call = calls[delta.index] = { id: delta.id, name: "", text: "", box, shownName: name, shown: rest };
    }
    call.name += delta.function?.name || "";
    call.text += delta.function?.arguments || "";
    call.shownName.textContent = call.name + " ";
    call.shown.textContent = call.text;
  }
}

// One input per call; the conversation goes on when all results are sent.
function askResults(calls) {
  const form = document.createElement("form");
  form.className = "results";
  calls[0].box.parentNode.append(form);
  for (const call of calls) {
    const label = document.createElement("label");
    label.append(`result of ${call.name}`, Object.assign(document.createElement("input"), { autocomplete: "off" }));
    call.box.append(label);
    form.append(call.box);
  }
  form.append(Object.assign(document.createElement("button"), { textContent: calls.length > 1 ? "Send results" : "Send result" }));
  owed = form;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running || owed !== form) return;
    owed = null;
    const results = calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.box.querySelector("input").value }));
    form.querySelectorAll("input").forEach((input) => (input.disabled = true));
    form.lastChild.remove();
    send(results);
  });
  form.querySelector("input").focus();
  form.scrollIntoView({ block: "end" });
}

async function send(more) {
  const asked = { ...body(more), stream: true, return_receipt: true, stream_options: { include_usage: true } };
  running = new AbortController();
  $("send").disabled = true;
  $("stop").hidden = false;
  const isChat = mode === "chat";
  if (!isChat) say("text", more);
  for (const message of isChat ? more : []) if (message.role === "user") say("user", message.content);
  let shown = isChat ? say("assistant busy", "") : $("talk").lastChild.appendChild(document.createElement("span"));
  let text = "", calls = [], thought = null, usage = null, metrics = null, first = 0;
  const began = performance.now();
  try {
    const answer = await fetch(path(), {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked), signal: running.signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage || usage;
      metrics = event.metrics || metrics;
      for (const choice of event.choices) {
        const piece = isChat ? choice.delta.content || "" : choice.text;
        if (isChat && choice.delta.reasoning_content) {
          thought ||= shown.parentNode.insertBefore(Object.assign(document.createElement("p"), { className: "reasoning" }), shown);
          thought.textContent += choice.delta.reasoning_content;
        }
        if (isChat && choice.delta.tool_calls) takeCalls(calls, choice.delta.tool_calls, shown);
        if ((piece || calls.length) && !first) first = performance.now();
        text += piece;
        shown.textContent = text;
      }
      shown.scrollIntoView({ block: "end" });
    }
    if (isChat) keep(more, text, calls);
  } catch (error) {
    if (error.name !== "AbortError") {
      say("error", error.message);
      if (isChat && more[0].role === "tool") turns.push(...more);
    } else if (isChat) keep(more, text, []);
  }
  if (calls.length && !text) shown.remove();
  shown.classList.remove("busy");
  running = null;
  $("send").disabled = false;
  $("stop").hidden = true;
  receipt(usage, metrics, first - began, performance.now() - began);
}

function keep(more, text, calls) {
  const answer = { role: "assistant", content: text };
  if (calls.length) {
    answer.content = text || null;
    answer.tool_calls = calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.text } }));
    askResults(calls);
  }
  turns.push(...more, answer);
}

function receipt(usage, metrics, firstMs, allMs) {
  if (!usage) return;
  const parts = [`<b>${usage.prompt_tokens}</b> + <b>${usage.completion_tokens}</b> tokens`];
  if (firstMs > 0) parts.push(`first after <b>${firstMs.toFixed(0)} ms</b>`, `all after <b>${allMs.toFixed(0)} ms</b>`);
  if (metrics) {
    parts.push(`queue ${metrics.queue_ms.toFixed(1)} ms`, `prefill ${metrics.prefill_ms.toFixed(1)} ms`);
    parts.push(`decode ${metrics.decode_ms.toFixed(0)} ms`, `${metrics.cached_tokens} cached`, `${(metrics.kv_bytes / 1024).toFixed(0)} KiB of KV`);
  }
  const line = $("receipt");
  line.textContent = "";
  for (const part of parts.join(" · ").split(/(<b>.*?<\/b>)/)) {
    const bold = part.match(/^<b>(.*)<\/b>$/);
    line.append(bold ? Object.assign(document.createElement("b"), { textContent: bold[1] }) : part);
  }
}

function choose(next) {
  mode = next;
  $("tab-chat").setAttribute("aria-selected", next === "chat");
  $("tab-text").setAttribute("aria-selected", next === "text");
  $("tooling").hidden = next !== "chat";
  $("prompt").placeholder = next === "chat" ? "Say something. Ctrl+Enter sends." : "The beginning of a text. Ctrl+Enter continues it.";
  clear();
}

function clear() {
  turns = [];
  owed = null;
  $("talk").textContent = "";
  say("empty", mode === "chat" ? "A conversation with the model's own template." : "Plain text in, its continuation out.");
  example();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  if (!prompt || running || !checkTools()) return;
  if (owed) return owed.querySelector("input").focus();
  $("prompt").value = "";
  send(mode === "chat" ? [{ role: "user", content: prompt }] : prompt);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("tools-example").addEventListener("click", () => {
  $("tools").value = JSON.stringify(TOOLS, null, 2);
  example();
});
for (const id of ["prompt", "temperature", "max-tokens", "seed", "shape", "tools", "tool-choice"]) $(id).addEventListener("input", example);
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", clear);
$("tab-chat").addEventListener("click", () => choose("chat"));
$("tab-text").addEventListener("click", () => choose("text"));
choose("chat");
learn().catch(() => {});
look();
