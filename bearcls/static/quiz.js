/* The quiz in the browser: a question, a hint and an answer on request, and two buttons to mark yourself. Python decides which question comes.

   Python puts the parts of cleaner.js that all widgets need before this file: `make`, `patience` and `followTheme`.
   A `Round` holds what has arrived; each place that shows the widget has a `Sheet`. Messages are named in
   bearcls/teach/quiz.py. Text goes into the page as text, never as HTML. */

/* ---------------------------------------------------------------- what has arrived */

class Round {
  constructor(model) {
    this.model = model;
    this.sheets = new Set();
    this.since = 0; // Since when Python has not answered; 0: nothing is asked
    this.now = {};
    this.opened = { hint: false, answer: false };
    this.listen = (message) => this.take(message);
    model.on('msg:custom', this.listen);
    this.take(model.get('now') ?? {}); // `now` is made anew whenever the state is asked for, so a reloaded page starts with what is true now
  }

  close() { this.model.off('msg:custom', this.listen); }

  get late() { return this.since && Date.now() - this.since > patience; }

  send(message) {
    if (this.since && !this.late) return; // One at a time: a key held down marks once
    this.since = Date.now();
    this.model.send(message);
    setTimeout(() => this.tell(), patience + 50);
  }

  take(answer) {
    this.since = 0;
    if (answer.question?.number !== this.now.question?.number || answer.said) this.opened = { hint: false, answer: false };
    this.now = { ...this.now, said: '', refused: '', ...answer };
    this.tell();
  }

  open(part) {
    if (!this.now.question || this.opened[part]) return;
    this.opened[part] = true;
    this.tell();
  }

  mark(knew) {
    const { question } = this.now;
    if (question && this.opened.answer) this.send({ do: 'mark', number: question.number, knew });
  }

  more() { this.send({ do: 'more' }); }

  tell() { for (const sheet of this.sheets) sheet.draw(); }
}

/* ---------------------------------------------------------------- one place that shows it */

/* Words with code in backquotes */
const worded = (text) => text.split('`').map((part, k) => (k % 2 ? make('code', {}, part) : part));

class Sheet {
  constructor(round, host) {
    this.round = round;
    this.build();
    host.append(this.root);
    this.stopTheme = followTheme(this.root);
    round.sheets.add(this);
    this.draw();
  }

  close() {
    this.round.sheets.delete(this);
    this.stopTheme();
    this.root.remove();
  }

  /* A button with the key that does the same */
  button(words, key, onclick, kind = '') {
    return make('button', { type: 'button', class: `bc-button ${kind}`, 'aria-keyshortcuts': key, onclick: () => { onclick(); this.card.focus(); } }, words, make('kbd', { 'aria-hidden': 'true' }, key));
  }

  build() {
    const { round } = this;
    this.theme = make('div', { class: 'bc-muted' });
    this.question = make('p', { class: 'bq-question' });
    this.asked = make('div', { 'aria-live': 'polite' }, this.theme, this.question);
    this.opened = make('div', { class: 'bq-opened', 'aria-live': 'polite' });
    this.card = make('div', { class: 'bq-card', tabindex: 0, role: 'group', 'aria-label': 'Question' }, this.asked, this.opened);
    this.hint = this.button('Hint', 'h', () => round.open('hint'));
    this.show = this.button('Show the answer', 'Enter', () => round.open('answer'), 'bc-main');
    this.knew = this.button('I knew it', '1', () => round.mark(true));
    this.missed = this.button('Not yet', '2', () => round.mark(false));
    this.again = make('button', { type: 'button', class: 'bc-button', onclick: () => { round.more(); this.card.focus(); } }, 'Ask before it is due');
    this.buttons = make('div', { class: 'bc-group bq-buttons', role: 'group', 'aria-label': 'What next' }, this.hint, this.show, this.knew, this.missed, this.again);
    this.status = make('div', { class: 'bc-status', role: 'status', 'aria-live': 'polite' });
    this.boxes = make('div', { class: 'bq-boxes' });
    this.file = make('div', { class: 'bc-muted bq-file' });
    this.trouble = make('div', { class: 'bc-trouble', role: 'alert' });
    this.root = make('div', {
      class: 'bearcls-cleaner bearcls-quiz', role: 'region', 'aria-label': 'Quiz',
      onfocusin: (event) => event.target.setAttribute('data-lm-suppress-shortcuts', 'true'), // Jupyter asks what has the focus: otherwise its own keys work here
      onkeydown: (event) => this.key(event),
    }, this.trouble, this.card, this.buttons, this.status, this.boxes, this.file);
  }

  draw() {
    const { now, opened, late } = this.round;
    const { question } = now;
    const key = JSON.stringify([question?.number, opened]);
    if (key !== this.drawn) this.drawQuestion(question, opened);
    this.drawn = key;
    const text = [now.said, now.words].filter(Boolean).join(' ');
    if (this.status.textContent !== text) this.status.textContent = text; // Only what changed is read aloud
    this.drawBoxes(now.boxes ?? []);
    this.file.textContent = now.file ? `Your progress is kept in ${now.file}` : '';
    const trouble = now.refused || (late ? 'Python has not answered for a while. It may be busy with another cell; if it was restarted, run the cell again: your progress is kept.' : '');
    if (this.trouble.textContent !== trouble) this.trouble.textContent = trouble;
  }

  drawQuestion(question, opened) {
    const asked = question ? `${question.number} ${question.question}` : 'none';
    if (this.asked.dataset.shows !== asked) {
      this.asked.dataset.shows = asked;
      this.theme.textContent = question ? `Question ${question.number}: ${question.theme}` : '';
      this.question.replaceChildren(...worded(question ? question.question : 'Nothing is due.'));
    }
    const parts = [];
    if (question && opened.hint) parts.push(make('p', { class: 'bq-hint' }, make('strong', {}, 'Hint: '), ...worded(question.hint)));
    if (question && opened.answer) {
      parts.push(make('p', { class: 'bq-answer' }, make('strong', {}, 'Answer: '), ...worded(question.answer)));
      parts.push(make('p', {}, 'At work: ', make('a', { href: question.url, target: '_blank', rel: 'noopener' }, ...worded(question.where))));
    }
    this.opened.replaceChildren(...parts);
    this.hint.hidden = !question || opened.hint || opened.answer;
    this.show.hidden = !question || opened.answer;
    this.knew.hidden = this.missed.hidden = !question || !opened.answer;
    this.again.hidden = Boolean(question);
  }

  drawBoxes(boxes) {
    const most = Math.max(1, ...boxes.map((box) => box.n));
    this.boxes.replaceChildren(...boxes.map(({ name, n }) => make('div', { class: 'bq-box' },
      make('span', { class: 'bq-name' }, name), make('span', { class: 'bq-bar', 'aria-hidden': 'true' }, make('span', { style: `width:${Math.round(100 * n / most)}%` })), make('span', {}, String(n)))));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === 'Tab') return;
    event.stopPropagation(); // The page's own shortcuts are not meant
    const onButton = event.target.matches('button, a') && ['Enter', ' '].includes(event.key);
    if (onButton || !this.act(event.key, event.repeat)) return; // The browser presses the button
    event.preventDefault();
  }

  act(key, repeat) {
    const { round } = this;
    const deeds = { h: () => round.open('hint'), Enter: () => round.open('answer'), 1: () => round.mark(true), 2: () => round.mark(false) };
    const deed = deeds[key.length === 1 ? key.toLowerCase() : key];
    if (!deed) return false;
    if (!repeat) deed(); // A key held down is pressed once
    this.card.focus();
    return true;
  }
}

/* ---------------------------------------------------------------- what anywidget calls */

export default () => {
  let round; // This function is called once for each widget
  return {
    initialize({ model }) {
      round = new Round(model);
      return () => round.close();
    },
    render({ model, el }) {
      round ??= new Round(model);
      const sheet = new Sheet(round, el);
      return () => sheet.close();
    },
  };
};
