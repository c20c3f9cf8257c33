/* The review widget in the browser: one image at a time, and what a person says about it. Every decision is taken in Python.

   Python puts the parts of cleaner.js that both widgets need before this file: `make`, `percent`, `patience` and `followTheme`.
   A `Session` holds what has arrived; each place that shows the widget has a `Desk`. Messages are named in
   bearcls/rollout/review.py. Text goes into the page as text, never as HTML: file names come from strangers. */

const keptImages = 60; // So many stay in memory, so that an undo shows its image at once

/* ---------------------------------------------------------------- what has arrived */

class Session {
  constructor(model) {
    this.model = model;
    this.desks = new Set();
    this.items = []; // The first is on show
    this.images = new Map(); // answer -> address of its image
    this.pending = new Map(); // answer -> since when it waits for Python's confirmation
    this.words = '';
    this.said = '';
    this.listen = (message, buffers) => this.take(message, buffers);
    model.on('msg:custom', this.listen);
    // `now` is made anew whenever the state is asked for, so a reloaded page starts with what is true now
    const { bytes, ...answer } = model.get('now') ?? {};
    this.take(answer, bytes);
  }

  close() {
    this.model.off('msg:custom', this.listen);
    for (const url of this.images.values()) URL.revokeObjectURL(url);
  }

  get item() { return this.items[0]; }

  /* Python is busy, or it is gone */
  get late() { return [...this.pending.values()].some((since) => Date.now() - since > patience); }

  send(message) {
    this.model.send({ ...message, have: [...this.images.keys()] });
    setTimeout(() => this.tell(), patience + 50);
  }

  /* The next image is shown at once; the answer confirms it, or brings the image back */
  say(said) {
    const item = this.item;
    if (!item || said === 'right' && !item.label) return;
    this.pending.set(item.answer, Date.now());
    this.items = this.items.slice(1);
    this.send({ do: 'say', answer: item.answer, said });
    this.tell();
  }

  undo() { this.send({ do: 'undo' }); }
  more() { this.send({ do: 'more' }); }

  /* An answer has any of: done, items, images (with buffers), words, said, refused */
  take(answer, buffers = []) {
    if (answer.done) this.pending.delete(answer.done);
    (answer.images ?? []).forEach((name, k) => this.takeImage(name, buffers[k]));
    if (answer.items) this.items = answer.items.filter((item) => !this.pending.has(item.answer));
    if (answer.words !== undefined) this.words = answer.words;
    if (answer.said !== undefined || answer.refused) this.said = answer.refused || answer.said;
    this.tell();
  }

  takeImage(name, bytes) {
    if (bytes && !this.images.has(name)) this.images.set(name, URL.createObjectURL(new Blob([bytes])));
    for (const [old, url] of this.images) {
      if (this.images.size <= keptImages) break;
      this.images.delete(old);
      URL.revokeObjectURL(url);
    }
  }

  tell() { for (const desk of this.desks) desk.draw(); }
}

/* ---------------------------------------------------------------- one place that shows it */

class Desk {
  constructor(session, host) {
    this.session = session;
    this.build();
    host.append(this.root);
    this.stopTheme = followTheme(this.root);
    session.desks.add(this);
    this.draw();
  }

  close() {
    this.session.desks.delete(this);
    this.stopTheme();
    this.root.remove();
  }

  /* A button with the key that does the same */
  button(words, key, onclick, kind = '') {
    return make('button', { type: 'button', class: `bc-button ${kind}`, 'aria-keyshortcuts': key, onclick: () => { onclick(); this.card.focus(); } }, words, make('kbd', { 'aria-hidden': 'true' }, key));
  }

  build() {
    const { session } = this;
    this.image = make('div', { class: 'br-image' });
    this.facts = make('div', { class: 'br-facts' });
    this.card = make('div', { class: 'br-card', tabindex: 0, role: 'group', 'aria-label': 'Image to judge' }, this.image, this.facts);
    this.labels = make('div', { class: 'bc-group', role: 'group', 'aria-label': 'What the image shows' });
    this.right = this.button('Right', 'Enter', () => session.say('right'), 'bc-main br-right');
    this.others = make('div', { class: 'bc-group', role: 'group', 'aria-label': 'Something else' },
      this.button('Other', 'o', () => session.say('other')), this.button('Cannot tell', '?', () => session.say('cannot tell')), this.button('Undo', 'z', () => session.undo(), 'br-undo'));
    this.again = make('button', { type: 'button', class: 'bc-button', onclick: () => session.more() }, 'Look for more');
    this.status = make('div', { class: 'bc-status', role: 'status', 'aria-live': 'polite' });
    this.trouble = make('div', { class: 'bc-trouble', role: 'alert' });
    this.root = make('div', {
      class: 'bearcls-cleaner bearcls-review', role: 'region', 'aria-label': 'Review',
      onfocusin: (event) => event.target.setAttribute('data-lm-suppress-shortcuts', 'true'), // Jupyter asks what has the focus: otherwise its own keys work here
      onkeydown: (event) => this.key(event),
    }, this.trouble, this.card, make('div', { class: 'br-answers' }, this.labels, this.others), this.again, this.status);
  }

  draw() {
    const { item, pending, words, said, late } = this.session;
    this.card.hidden = this.labels.parentElement.hidden = !item && !pending.size;
    this.labels.hidden = !item;
    this.again.hidden = Boolean(item || pending.size);
    if (item && item !== this.drawn) this.drawItem(item);
    this.drawImage(item);
    const text = [said, item || pending.size ? '' : 'Nothing waits to be looked at.', words].filter(Boolean).join(' ');
    if (this.status.textContent !== text) this.status.textContent = text; // Only what changed is read aloud
    const trouble = late ? 'Python has not answered for a while. It may be busy with another cell; if it was restarted, run the cell again: confirmed answers are kept.' : '';
    if (this.trouble.textContent !== trouble) this.trouble.textContent = trouble;
  }

  drawItem(item) {
    this.drawn = item;
    const line = (...words) => make('div', { class: 'bc-line' }, ...words);
    const bar = item.label && make('span', { class: 'bc-bar-of', 'aria-hidden': 'true' }, make('span', { style: `width:${percent(item.probability)}` }));
    this.facts.replaceChildren(...[
      item.label ? line(make('strong', {}, `model: ${item.label}`), make('span', {}, percent(item.probability))) : line(make('strong', {}, `models: ${item.says}`)),
      bar, item.reason ? make('div', { class: 'bc-reason' }, item.reason) : null,
      make('div', { class: 'bc-muted' }, item.why), make('div', { class: 'bc-muted' }, [item.place, item.time].filter(Boolean).join(', ')), make('div', { class: 'bc-muted br-name' }, item.name)].filter(Boolean));
    const digit = (k) => (k < 9 ? String(k + 1) : '');
    const names = item.labels.map((label, k) => this.button(label, digit(k), () => this.session.say(label), label === item.label ? 'br-same' : ''));
    this.labels.replaceChildren(...(item.label ? [this.right] : []), ...names);
  }

  drawImage(item) {
    const src = item && this.session.images.get(item.answer);
    if (this.image.dataset.shows === `${item?.answer} ${src}`) return;
    this.image.dataset.shows = `${item?.answer} ${src}`;
    const words = item?.image === false ? 'No image: the log keeps no thumbnail, and no file fits' : '';
    this.image.replaceChildren(src ? make('img', { src, alt: item.name || 'Image to judge', draggable: 'false' }) : make('span', { class: 'bc-muted' }, words));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === 'Tab') return;
    event.stopPropagation(); // The page's own shortcuts are not meant
    const onButton = event.target.matches('button') && ['Enter', ' '].includes(event.key);
    if (onButton || !this.act(event.key, event.repeat)) return; // The browser presses the button
    event.preventDefault();
  }

  act(key, repeat) {
    const { session } = this;
    const deeds = { Enter: () => session.say('right'), o: () => session.say('other'), '?': () => session.say('cannot tell'), z: () => session.undo() };
    const label = /^[1-9]$/.test(key) && session.item?.labels[Number(key) - 1];
    const deed = label ? () => session.say(label) : deeds[key.length === 1 ? key.toLowerCase() : key];
    if (!deed) return false;
    if (!repeat) deed(); // A key held down is pressed once
    this.card.focus();
    return true;
  }
}

/* ---------------------------------------------------------------- what anywidget calls */

export default () => {
  let session; // This function is called once for each widget
  return {
    initialize({ model }) {
      session = new Session(model);
      return () => session.close();
    },
    render({ model, el }) {
      session ??= new Session(model);
      const desk = new Desk(session, el);
      return () => desk.close();
    },
  };
};
