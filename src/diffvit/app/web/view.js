// Behaviour of an HTML component that shows images. Gradio gives `element`, `props`, `trigger` and `watch`.

element.addEventListener('click', event => {
  const thumb = event.target.closest('[data-index]'), picture = event.target.closest('[data-ask]');
  if (thumb) trigger('select', {index: Number(thumb.dataset.index), owner: thumb.parentElement.dataset.owner});
  const enlarged = event.target.closest('.dv-enlarge');
  if (enlarged) enlarge(enlarged.closest('figure'));
  if (!picture) return;
  const box = picture.getBoundingClientRect();
  trigger('click', {down: (event.clientY - box.top) / box.height, across: (event.clientX - box.left) / box.width});
});

// A map fills the window until it is clicked or Escape is pressed.
function enlarge(figure) {
  const dialog = document.body.appendChild(document.createElement('dialog'));
  dialog.className = 'dv-large';
  dialog.setAttribute('aria-label', figure.querySelector('img').alt);
  dialog.append(figure.cloneNode(true));
  dialog.querySelector('button').textContent = 'close';
  dialog.querySelector('button').setAttribute('aria-label', 'Close');
  for (const kind of ['pointermove', 'pointerdown']) dialog.addEventListener(kind, read);
  dialog.addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => dialog.remove());
  dialog.showModal();
}

// The value under the pointer, below its map.
function read(event) {
  const map = event.target.closest('[data-values]');
  if (!map) return;
  const values = JSON.parse(map.dataset.values), box = map.getBoundingClientRect();
  const at = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
  const row = at((event.clientY - box.top) / box.height, values.length);
  const column = at((event.clientX - box.left) / box.width, values[0].length);
  for (const other of document.querySelectorAll('.dv-value')) other.textContent = '\u00a0';
  map.closest('figure').querySelector('.dv-value').textContent = `row ${row}, column ${column}: ${values[row][column]}`;
}
for (const kind of ['pointermove', 'pointerdown']) element.addEventListener(kind, read);

// Answers may arrive in another order than their requests were made: the answer to the newest request stays. The
// address of the page names what it shows.
let newest = 0, kept = null;
watch('value', () => {
  const number = Number((/data-request="(\d+)"/.exec(props.value) || [0, 0])[1]);
  if (number < newest) { props.value = kept; return; }
  newest = number;
  kept = props.value;
  const address = /data-address="([^"]+)"/.exec(props.value);
  if (address) history.replaceState(null, '', address[1].replaceAll('&amp;', '&'));
});
