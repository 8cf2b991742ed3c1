// The upload zone: sends a picture to the server's own route, and its token to the page as the event `upload`.

const zone = element.querySelector('.dv-drop'), input = zone.querySelector('input');
const status = element.querySelector('.dv-upload-said'), limit = Number(zone.dataset.limit);
const say = (text, wrong) => { status.textContent = text; status.classList.toggle('dv-fault', wrong); };

async function send(file) {
  if (!file) return;
  if (file.size > limit) { say(`${file.name}: is too large (over ${limit >> 20} MiB).`, true); return; }
  say(`Reading ${file.name} ...`, false);
  try {
    const headers = {'x-picture-name': encodeURIComponent(file.name).slice(0, 2000)};
    const answer = await fetch('./picture', {method: 'POST', body: file, headers});
    const found = await answer.json();
    if (found.token) { say(`Showing ${file.name}`, false); trigger('upload', {token: found.token}); }
    else say(found.error || found.detail || 'The upload failed.', true);
  } catch (error) { say('The server did not answer. Is diffvit app still running?', true); }
  input.value = '';
}

input.addEventListener('change', () => send(input.files[0]));
for (const kind of ['dragover', 'dragleave', 'drop']) zone.addEventListener(kind, event => {
  event.preventDefault();
  zone.classList.toggle('dv-over', kind === 'dragover');
  if (kind === 'drop') send(event.dataTransfer.files[0]);
});
