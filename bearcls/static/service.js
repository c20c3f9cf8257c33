/* The page of the HTTP service: the front end of the notebook application, which asks /predict of the same host.
   A key, if one is needed, stays in this page's memory and is gone when the page is closed. */
import { mount } from './classify.js';

const form = document.getElementById('key');
const trouble = document.getElementById('trouble');
let key = '';

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

async function ask(item) {
  const answer = await call('predict', { method: 'POST', body: item.blob, headers: { 'Content-Type': item.blob.type.startsWith('image/') ? item.blob.type : 'application/octet-stream' }, signal: item.signal });
  return answer.results[0];
}

async function start() {
  trouble.textContent = '';
  try {
    const { labels, title } = await call('labels');
    form.hidden = true;
    document.title = title;
    mount(document.getElementById('page'), { title, labels, ask, heading: 'h1' });
  } catch (error) {
    form.hidden = error.status !== 401;
    trouble.textContent = error.status === 401 && !key ? '' : error.status === 401 ? 'That is not the key.' : error.message;
    if (!form.hidden) form.elements.key.focus();
  }
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  key = form.elements.key.value;
  start();
});
start();
