"use strict";
// A chat over /v1/chat/completions. Whatever a model or a user wrote enters the page as text, never as HTML.

const at = (id) => document.getElementById(id);
const SAVED = ["system", "temperature", "limit", "thinking"]; // not the key: it is to be forgotten with the tab
let messages = [];
let running = null;

function made(tag, kind, text = "") {
  const node = document.createElement(tag);
  node.className = kind;
  node.textContent = text;
  return node;
}

function headers() {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function body() {
  const system = at("system").value.trim();
  const value = {
    model: "default", stream: true, stream_options: { include_usage: true }, enable_thinking: at("thinking").checked,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
  };
  if (at("temperature").value !== "") value.temperature = Number(at("temperature").value);
  if (at("limit").value !== "") value.max_tokens = Number(at("limit").value);
  return value;
}

function turn(role) {
  const node = made("article", `turn ${role}`);
  const words = made("div", "words");
  node.append(words);
  at("hint")?.remove();
  at("talk").append(node);
  return { node, words };
}

function follow(act) {
  const talk = at("talk");
  const low = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
  act();
  if (low) talk.scrollTop = talk.scrollHeight;
}

// The values of the `data:` lines of a stream of events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

async function refusal(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `${response.status} ${text}`;
  }
}

function figures(began, first, tokens) {
  const parts = [];
  if (tokens) parts.push(`${tokens} tokens`);
  if (first !== null) {
    const seconds = (performance.now() - first) / 1000;
    if (tokens > 1 && seconds > 0) parts.push(`${((tokens - 1) / seconds).toFixed(1)} tok/s`);
    parts.push(`first after ${Math.round(first - began)} ms`);
  }
  return parts.join(" · ");
}

async function answer() {
  const { node, words } = turn("assistant");
  const foot = made("div", "foot");
  const numbers = made("span", "numbers");
  const thoughts = made("details", "");
  const thought = made("div", "thought");
  thoughts.append(made("summary", "", "Reasoning"), thought);
  foot.append(numbers);
  node.append(foot);
  node.classList.add("busy");
  running = new AbortController();
  busy(true);
  const began = performance.now();
  let first = null;
  let tokens = 0;
  let text = "";
  let error = "";
  let finished = false;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body()), signal: running.signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    for await (const data of events(response)) {
      if (data === "[DONE]") {
        finished = true;
        break;
      }
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices[0]?.delta ?? {};
      if (delta.content || delta.reasoning_content) {
        first ??= performance.now();
        tokens += 1; // a piece is about a token; the exact count comes at the end
      }
      if (event.usage) tokens = event.usage.completion_tokens;
      follow(() => {
        if (delta.reasoning_content) {
          if (!thoughts.isConnected) words.before(thoughts);
          thought.append(delta.reasoning_content);
        }
        if (delta.content) {
          text += delta.content;
          words.append(delta.content);
        }
        numbers.textContent = figures(began, first, tokens);
      });
    }
    if (!finished) error = "The stream ended before its end.";
  } catch (reason) {
    if (reason.name === "AbortError") numbers.textContent += " · stopped";
    else error = reason.message;
  }
  node.classList.remove("busy");
  running = null;
  busy(false);
  follow(() => {
    if (error) foot.before(made("p", "error", error));
    if (text) foot.append(copier(text));
    else if (finished) words.append("(no answer)");
  });
  if (text || finished) messages.push({ role: "assistant", content: text });
  else messages.pop(); // a question without an answer is not part of the conversation
}

function copier(text) {
  const button = made("button", "copy", "Copy");
  button.type = "button";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser does not let me";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

function busy(on) {
  at("send").hidden = on;
  at("stop").hidden = !on;
}

function fit() {
  const text = at("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

async function submit(event) {
  event?.preventDefault();
  const text = at("text").value.trim();
  if (!text || running) return;
  at("text").value = "";
  fit();
  messages.push({ role: "user", content: text });
  turn("user").words.textContent = text;
  at("talk").scrollTop = at("talk").scrollHeight;
  await answer();
  at("text").focus();
}

function fresh() {
  running?.abort();
  messages = [];
  at("talk").replaceChildren();
  at("text").focus();
}

function remember() {
  for (const id of SAVED) {
    const input = at(id);
    const kept = localStorage.getItem(`bwinfer.${id}`);
    if (kept !== null && input.type === "checkbox") input.checked = kept === "true";
    else if (kept !== null) input.value = kept;
    input.addEventListener("change", () => {
      localStorage.setItem(`bwinfer.${id}`, input.type === "checkbox" ? input.checked : input.value);
    });
  }
}

async function name() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) return;
  at("model").textContent = (await response.json()).data[0].id;
  document.title = at("model").textContent;
}

at("ask").addEventListener("submit", submit);
at("settings").addEventListener("submit", (event) => event.preventDefault());
at("text").addEventListener("input", fit);
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
});
at("stop").addEventListener("click", () => running?.abort());
at("fresh").addEventListener("click", fresh);
at("key").addEventListener("change", name);
at("open").addEventListener("click", () => {
  at("settings").hidden = !at("settings").hidden;
  at("open").setAttribute("aria-expanded", String(!at("settings").hidden));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key.toLowerCase() === "o" && event.ctrlKey && event.shiftKey) {
    event.preventDefault();
    fresh();
  }
});
remember();
name();
