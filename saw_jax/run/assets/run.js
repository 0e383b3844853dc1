// While the run goes on, the page is read again, unless somebody reads it.
const { live, at, patience } = document.body.dataset;
if (Number(live)) {
  const isOld = Date.now() / 1000 - Number(at) > Number(patience);
  document.getElementById("stale").hidden = !isOld;
  setInterval(() => {
    const isRead = document.querySelector("details[open]");
    if (!isRead && !document.hidden) location.reload();
  }, 30000);
}
