/** Says what went wrong, in the paragraph that stands for it; without words, nothing did. */
export function wrong(id, words = "") {
  const paragraph = document.getElementById(id);
  paragraph.textContent = words;
  paragraph.hidden = !words;
  if (words) paragraph.scrollIntoView({ block: "nearest" });
}
