// Keeps the files of this version of the page, so that it opens without a network. `write_web` fills in the two values
const version = '$version';
const files = $files;  // name: SHA-256
const mine = `bearcls ${self.registration.scope} `;

async function keep() {  // all or nothing, and only what belongs to this version
  const cache = await caches.open(mine + version);
  await Promise.all(Object.entries(files).map(async ([name, digest]) => {
    const answer = await fetch(name, { cache: 'no-cache' });
    const found = new Uint8Array(await crypto.subtle.digest('SHA-256', await answer.clone().arrayBuffer()));
    if (!answer.ok || [...found].map((v) => v.toString(16).padStart(2, '0')).join('') !== digest) throw new Error(`${name} is not that of this version`);
    await cache.put(name, answer);
  }));
}

async function tidy() {
  for (const name of await caches.keys()) if (name.startsWith(mine) && name !== mine + version) await caches.delete(name);
  await self.clients.claim();
}

async function kept(request) {
  const cache = await caches.open(mine + version), address = new URL(request.url.replace(/index\.html(?=$$|[?#])/, ''));
  return await cache.match(address, { ignoreSearch: true }) ?? fetch(request);
}

self.addEventListener('install', (event) => event.waitUntil(keep()));
self.addEventListener('activate', (event) => event.waitUntil(tidy()));
self.addEventListener('fetch', (event) => { if (event.request.method === 'GET' && event.request.url.startsWith(self.registration.scope)) event.respondWith(kept(event.request)); });
