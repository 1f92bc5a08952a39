// The pages of the CA service: one script, what a page shows is chosen by its address.

const LANGUAGES = ['en', 'fr', 'ja'];
const language = LANGUAGES.find((each) => (localStorage.getItem('ca.lang') ?? navigator.language).startsWith(each)) ?? 'en';
const texts = await (await fetch(`/assets/${language}.json`)).json();
const t = (key, values = {}) => (texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '');

/** An element; children are elements or texts, never markup. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((each) => each != null));
  return element;
}

const log = h('div', { id: 'log', role: 'log', 'aria-live': 'polite', tabindex: 0 });
function say(text, kind = '') {
  log.append(h('div', { class: kind }, text));
  log.scrollTop = log.scrollHeight;
}

/** Ask the service, by JSON or a form; what it says is shown in the commands log. Returns the answer, or null. */
async function post(path, data) {
  let response;
  try {
    response = await fetch(path, data instanceof URLSearchParams ? { method: 'POST', body: data } : {
      method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(data),
    });
  } catch {
    say(t('error.lost'), 'error');
    return null;
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({ text: response.statusText, next_step: '' }));
  say(`${t('error')} ${told.text}`, 'error');
  if (told.next_step) say(`${t('next')} ${told.next_step}`, 'error');
  return null;
}

async function lines(response) {
  for (const each of (await response.json()).lines ?? []) say(each);
  say(t('done'), 'good');
}

async function save(response, name) {
  const blob = await response.blob();
  const link = h('a', { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  say(t('downloaded', { name }), 'good');
}

/** A form whose fields are [name, type, options]; `done` gets the answer. */
function form(title, path, fields, button, done = lines, prepare = (data) => data) {
  const inputs = {};
  const labels = fields.map(([name, type, extra = {}]) => {
    const id = `${path}-${name}`.replaceAll('/', '-');
    const make = type === 'select' || type === 'textarea' ? type : 'input';
    const children = (extra.options ?? []).map((each) => h('option', { value: each }, each));
    const { options: _, value, ...rest } = extra;
    const input = h(make, { id, name, type: make === 'input' ? type : null, ...rest }, children);
    if (value !== undefined) input.value = value;
    inputs[name] = input;
    return type === 'checkbox'
      ? h('label', { class: 'row' }, input, t(`field.${name}`))
      : h('label', {}, h('span', {}, t(`field.${name}`)), input);
  });
  const submit = h('button', { class: 'do', type: 'submit' }, t(button));
  const run = async (event) => {
    event.preventDefault();
    const data = {};
    for (const [name, input] of Object.entries(inputs)) {
      if (input.type === 'checkbox') { if (input.checked) data[name] = 'on'; }
      else if (input.type === 'file') { if (input.files.length) data[name] = await input.files[0].text(); }
      else data[name] = input.value;
    }
    submit.disabled = true;
    say(`> ${title}`);
    const answer = await post(path, prepare(data));
    if (answer) await done(answer, data);
    submit.disabled = false;
    await refresh();
  };
  return h('form', { onsubmit: run, 'aria-label': title, autocomplete: 'off' }, labels, submit);
}

function tabs(parts) {
  const panels = parts.map(([key, content], index) => h('section', {
    role: 'tabpanel', id: `panel-${key}`, 'aria-labelledby': `tab-${key}`, hidden: index > 0 }, content()));
  const buttons = parts.map(([key], index) => h('button', {
    role: 'tab', id: `tab-${key}`, 'aria-controls': `panel-${key}`, 'aria-selected': String(index === 0),
    onclick: () => choose(index) }, t(`tab.${key}`)));
  const choose = (chosen) => panels.forEach((panel, index) => {
    panel.hidden = index !== chosen;
    buttons[index].setAttribute('aria-selected', String(index === chosen));
  });
  const list = h('div', { role: 'tablist', onkeydown: (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
    choose(next);
    buttons[next].focus();
  } }, buttons);
  return [list, ...panels];
}

const section = (key, content, open = false) =>
  h('details', { open }, h('summary', {}, t(key)), h('p', { class: 'muted' }, t(`${key}.text`)), content);

// What there is

const live = {};
let state = { issued: [], installed: [], files: [], names: {} };
const part = (name, render) => {
  const place = h('div');
  live[name] = () => place.replaceChildren(...[render()].flat());
  return place;
};
async function refresh() {
  const response = await fetch('/api/state');
  if (response.ok) state = await response.json();
  for (const render of Object.values(live)) render();
}
const table = (heads, rows) => rows.length === 0 ? h('p', { class: 'muted' }, t('none')) : h('div', { class: 'scroll' },
  h('table', {}, h('thead', {}, h('tr', {}, heads.map((each) => h('th', { scope: 'col' }, t(each))))), h('tbody', {}, rows)));
const day = (text) => new Date(text).toLocaleDateString(language, { dateStyle: 'medium' });

async function revoke(name) {
  if (!confirm(t('revoke.sure', { name }))) return;
  say(`> ${t('revoke')} ${name}`);
  const answer = await post('/api/revoke', { name });
  if (answer) await lines(answer);
  await refresh();
}
const issued = () => part('issued', () => [
  h('p', {}, state.authority ? t('authority', { name: state.authority }) : t('authority.none')),
  table(['head.name', 'head.state', 'head.ends', ''], state.issued.map((each) => h('tr', {},
    h('td', { title: `${each.subject} ${each.serial}` }, each.name),
    h('td', { class: `state-${each.state}` }, t(`state.${each.state}`)), h('td', {}, day(each.ends)),
    h('td', {}, each.state === 'valid'
      ? h('button', { class: 'small', onclick: () => revoke(each.serial) }, t('revoke')) : ''))))]);
const installed = () => part('installed', () => [
  h('p', {}, t(state.https ? 'https.on' : 'https.off', { node: state.node ?? '' })),
  table(['head.file', 'head.subject', 'head.ends'], state.installed.map((each) => h('tr', {},
    h('td', {}, each.file), h('td', {}, each.subject), h('td', {}, day(each.ends)))))]);
const files = () => part('files', () => table(['head.file', ''], state.files.map((name) => h('tr', {}, h('td', {}, name),
  h('td', {}, h('a', { href: `/api/files/${encodeURIComponent(name)}`, download: name }, t('download')))))));

// The parts of the pages

const first = () => form(t('first'), '/api/first', [['subject', 'text', { placeholder: '/O=My Company/CN=My Authority' }]],
  'confirm');
const additional = () => form(t('additional'), '/api/additional', [
  ['address', 'text', { required: true, placeholder: '10.0.0.1' }],
  ['password', 'password', { required: true, autocomplete: 'off' }],
  ['fingerprint', 'text', {}]], 'confirm');
const user = () => form(t('user'), '/api/user', [
  ['name', 'text', { required: true, maxlength: 64, autocomplete: 'off' }],
  ['password', 'password', { required: true, minlength: 4, autocomplete: 'new-password' }],
  ['role', 'select', { options: ['Admin', 'Control', 'Monitor'] }]], 'confirm',
(response, data) => save(response, `user_${data.role}_${data.name}.p12`));
const names = () => part('names', () => form(t('names'), '/api/names',
  ['ipv4.json', 'ipv6.json', 'ipnames.json'].map((each) => [each, 'text', { value: (state.names[each] ?? []).join(' ') }]),
  'confirm'));
const upload = () => form(t('upload'), '/api/upload', [
  ...['server.crt', 'server.key', 'cacert.crt', 'clcacert.crt', 'admin.crt', 'admin.key'].map((each) => [each, 'file', {}]),
  ['activate', 'checkbox', {}]], 'confirm');
const sign = () => form(t('sign'), '/caserv', [['name', 'text', {}], ['usercsr', 'file', { required: true }]], 'confirm',
  (response, data) => save(response, `${data.name || 'user'}.crt`),
  (data) => new URLSearchParams({ action: 'signrequest', ...data }));
const firewall = () => form(t('firewall'), '/api/firewall', [], 'firewall.do');
const requests = () => form(t('requests'), '/api/requests', [], 'confirm');
const renew = () => form(t('renew'), '/api/renew', [
  ['name', 'text', { placeholder: 'user_Admin_administrator' }], ['password', 'password', { autocomplete: 'new-password' }]],
'confirm');
const console_ = () => part('console', () => h('p', {}, h('a', { href: `https://${location.hostname}:9453/` }, t('console.open'))));

const pages = {
  wizard: () => tabs([
    ['server', () => [section('first', first(), true), section('additional', additional()), h('h2', {}, t('installed')), installed()]],
    ['firewall', () => [h('p', { class: 'muted' }, t('firewall.text')), firewall()]],
    ['console', () => [section('user', user(), true),
      section('import', h('p', {}, h('a', { href: '/certs/cacert.crt', download: 'cacert.crt' }, 'cacert.crt')), true),
      h('h2', {}, t('issued')), issued(), console_()]],
  ]),
  advanced: () => [section('upload', upload(), true), h('h2', {}, t('installed')), installed()],
  getcsr: () => [section('requests', requests()), section('sign', sign(), true), h('h2', {}, t('files')), files()],
  legacy: () => [section('names', names()),
    section('ca', form(t('ca'), '/api/ca', [['subject', 'text', {}]], 'confirm')),
    section('requests', requests()), section('additional', additional()), section('user', user()),
    section('upload', upload()), section('sign', sign()), section('renew', renew()), section('firewall', firewall()),
    h('h2', {}, t('issued')), issued(), h('h2', {}, t('installed')), installed()],
};

const links = { wizard: '/', advanced: '/advanced.html', getcsr: '/getcsr.html', legacy: '/legacy.html' };
const here = Object.keys(links).find((key) => links[key] === location.pathname);
document.documentElement.lang = language;
document.title = t(`page.${here}`);
document.body.replaceChildren(
  h('header', { class: 'top' }, h('b', {}, 'SafeKit CA'),
    h('nav', { 'aria-label': t('pages') }, Object.entries(links).map(([key, href]) =>
      h('a', { href, 'aria-current': key === here ? 'page' : null }, t(`page.${key}`)))),
    h('label', {}, h('span', { hidden: true }, t('language')), h('select', { 'aria-label': t('language'),
      onchange: (event) => { localStorage.setItem('ca.lang', event.target.value); location.reload(); } },
    [['en', 'English'], ['fr', 'Français'], ['ja', '日本語']].map(([value, name]) =>
      h('option', { value, selected: value === language }, name))))),
  h('main', {}, h('h1', {}, t(`page.${here}`)), pages[here](), h('h2', {}, t('log')), log),
);
await refresh();
