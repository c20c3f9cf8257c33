// Keeps the files of this version of the page, so that it opens without a network. `write_web` fills in the two values
const version = '$version';
const files = $files;  // name: SHA-256; none for the page, which tells its version, since hosts may put things of theirs into it
const ours = new RegExp('<meta name="?bearcls-version"? content="?' + version);
const mine = `bearcls ${self.registration.scope} `;

async function keep() {  // all or nothing, and only what belongs to this version
  const cache = await caches.open(mine + version);
  await Promise.all(Object.entries(files).map(async ([name, digest]) => {
    const answer = await fetch(name, { cache: 'no-cache' }), bytes = await answer.clone().arrayBuffer();
    if (!answer.ok || !(digest ? await digestOf(bytes) === digest : ours.test(new TextDecoder().decode(bytes)))) throw new Error(`${name} is not that of this version`);
    await cache.put(name, answer);
  }));
}

async function digestOf(bytes) { return [...new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))].map((v) => v.toString(16).padStart(2, '0')).join(''); }

async function undone(error) {  // half a version would only take room
  await caches.delete(mine + version);
  throw error;
}

async function tidy() {
  for (const name of await caches.keys()) if (name.startsWith(mine) && name !== mine + version) await caches.delete(name);
  await self.clients.claim();
}

async function kept(request) {
  const cache = await caches.open(mine + version), address = new URL(request.url.replace(/index\.html(?=$$|[?#])/, ''));
  return await cache.match(address, { ignoreSearch: true }) ?? fetch(request);
}

self.addEventListener('install', (event) => event.waitUntil(keep().catch(undone)));
self.addEventListener('activate', (event) => event.waitUntil(tidy()));
self.addEventListener('fetch', (event) => { if (event.request.method === 'GET' && event.request.url.startsWith(self.registration.scope)) event.respondWith(kept(event.request)); });
