// Behaviour of an HTML component that shows images. Gradio gives `element`, `props`, `trigger` and `watch`.

element.addEventListener('click', event => {
  const thumb = event.target.closest('[data-index]'), picture = event.target.closest('[data-ask]');
  if (thumb) trigger('select', {index: Number(thumb.dataset.index), owner: thumb.parentElement.dataset.owner});
  if (!picture) return;
  const box = picture.getBoundingClientRect();
  trigger('click', {down: (event.clientY - box.top) / box.height, across: (event.clientX - box.left) / box.width});
});

// Answers may arrive in another order than their requests were made: the answer to the newest request stays.
let newest = 0, kept = null;
watch('value', () => {
  const number = Number((/data-request="(\d+)"/.exec(props.value) || [0, 0])[1]);
  if (number < newest) { props.value = kept; return; }
  newest = number;
  kept = props.value;
});
