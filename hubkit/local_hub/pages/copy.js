
for (const block of document.querySelectorAll("main pre:has(code)")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy this code");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.innerText);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  const around = document.createElement("div");
  around.className = "copied";
  block.replaceWith(around);
  around.append(block, button);
}
