// Example images below a page of the gallery: a press on one asks the classifier about it
for (const button of document.querySelectorAll('.examples button')) button.addEventListener('click', async () => {
  const image = button.querySelector('img'), chosen = new DataTransfer();
  const bytes = await (await fetch(image.src)).blob();
  chosen.items.add(new File([bytes], image.getAttribute('src').split('/').pop(), { type: 'image/jpeg' }));
  const input = document.querySelector('input[multiple]');
  input.files = chosen.files;
  input.dispatchEvent(new Event('change'));
});
