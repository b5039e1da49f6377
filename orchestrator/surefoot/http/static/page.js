// What HTML alone cannot do: ask before what ends something, and mark what is not saved.
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});
for (const form of document.querySelectorAll("form[data-watch]")) {
  const before = new URLSearchParams(new FormData(form)).toString();
  const note = form.querySelector(".unsaved");
  let dirty = false;
  form.addEventListener("input", (event) => {
    dirty = new URLSearchParams(new FormData(form)).toString() !== before;
    event.target.closest("label")?.classList.toggle("changed", dirty);
    note.textContent = dirty ? "Not saved yet." : "";
  });
  form.addEventListener("submit", () => { dirty = false; });
  window.addEventListener("beforeunload", (event) => { if (dirty) event.preventDefault(); });
}
