/** Show an error in a form's error paragraph; without words, hide it. */
export function showFormError(id, words = "") {
  const paragraph = document.getElementById(id);
  paragraph.textContent = words;
  paragraph.hidden = !words;
  if (words) paragraph.scrollIntoView({ block: "nearest" });
}
