/* The page of the HTTP service: the front end of the notebook application, which asks /predict of the same host.
   A key, if one is needed, stays in this page's memory and is gone when the page is closed. */
import { mount } from './classify.js';

const form = document.getElementById('key');
const trouble = document.getElementById('trouble');
const wrongKey = 'That is not the key.';
let key = '';
let page = null;

/* Words for a log, as a sentence for a page */
function sentence(words) { return words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? '' : '.'); }

/* What a service says is wrong, as an Error with one sentence */
async function problem(response) {
  let detail = '';
  try { detail = (await response.json()).detail; } catch { /* no JSON: a proxy's own page */ }
  const wait = Number(response.headers.get('Retry-After'));
  if (response.status === 503 && wait) detail = `Too many people are asking at the moment. Try again in ${wait} second${wait === 1 ? '' : 's'}.`;
  const error = new Error(detail ? sentence(detail) : `The service answers with status ${response.status}.`);
  error.status = response.status;
  return error;
}

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try { response = await fetch(path, { ...options, headers }); } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('The service cannot be reached. Is it still running?');
  }
  if (!response.ok) throw await problem(response);
  return response.json();
}

/* The form for a key, with the focus in it; `words` say what is wrong with the last one */
function askForKey(words) {
  trouble.textContent = words;
  form.hidden = false;
  form.elements.key.focus();
}

async function ask(item) {
  let answer;
  try { answer = await send(item); } catch (error) { // The key was changed meanwhile
    if (error.status !== 401 || item.signal.aborted) throw error;
    if (form.hidden) askForKey(key ? wrongKey : '');
    throw new Error('This service asks for a key.');
  }
  return answer.results[0];
}

function send(item) {
  return call('predict', { method: 'POST', body: item.blob, headers: { 'Content-Type': item.blob.type.startsWith('image/') ? item.blob.type : 'application/octet-stream' }, signal: item.signal });
}

async function start() {
  trouble.textContent = '';
  try {
    const { labels, title } = await call('labels');
    const focused = !form.hidden;
    form.hidden = true;
    document.title = title;
    page?.destroy();
    page = mount(document.getElementById('page'), { title, labels, ask, heading: 'h1' });
    if (focused) page.button.focus(); // It was in the form, which is gone
  } catch (error) {
    if (error.status === 401) askForKey(key ? wrongKey : '');
    else trouble.textContent = error.message;
  }
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  const given = form.elements.key.value.trim();
  if (!/^[!-~]+$/.test(given)) return askForKey(wrongKey); // What no key consists of cannot be sent, either
  key = given;
  start();
});
start();
