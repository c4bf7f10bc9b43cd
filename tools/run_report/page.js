const table = document.getElementById("table"), body = table.tBodies[0], opened = document.getElementById("opened")
// By sheet: what ends when it is there, who ends that, its records and picture.
const requests = new Map(), arrived = new Map(), loaded = new Map()

function element(tag, text, classes = "") {
  const made = document.createElement(tag)
  made.textContent = text
  made.className = classes
  return made
}

// Sorting: numbers begin with the largest, texts with A; what is empty comes last either way.
for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
  head.querySelector("button").addEventListener("click", () => {
    const number = head.classList.contains("number"), before = head.getAttribute("aria-sort")
    const direction = before ? (before === "ascending" ? "descending" : "ascending") : number ? "descending" : "ascending"
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort")
    head.setAttribute("aria-sort", direction)
    const sign = direction === "ascending" ? 1 : -1
    const compare = ([a], [b]) => a === "" || b === "" ? (a === "") - (b === "")
      : sign * (number ? a - b : a.localeCompare(b, "en", {numeric: true}))
    const rows = [...body.rows].map(row => [row.cells[column].textContent, row])
    body.append(...rows.sort(compare).map(([, row]) => row))
  })
}

function filterRows() {
  const part = document.getElementById("name").value.toLowerCase(), group = document.getElementById("group").value
  let shown = 0
  for (const row of body.rows) {
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(part) || (group && row.dataset.group !== group)
    shown += !row.hidden
  }
  document.getElementById("shown").textContent = `${shown} classes`
}
document.getElementById("filter").addEventListener("input", filterRows)
document.getElementById("filter").addEventListener("submit", event => event.preventDefault())

// A sheet is a script, which calls showSheet, and a picture: both open from disk, where nothing can be fetched.
function showSheet(name, records) {
  const picture = new Image()
  const tell = complete => { loaded.set(name, {records, picture, complete}); arrived.get(name)() }
  picture.onload = () => tell(true)
  picture.onerror = () => tell(false)
  picture.src = `${name}.webp`
}

function loadSheet(name) {
  if (!requests.has(name)) requests.set(name, new Promise(resolve => {
    arrived.set(name, resolve)
    const script = element("script", "")
    script.src = `${name}.js`
    script.onerror = resolve
    document.head.append(script)
  }))
  return requests.get(name)
}

function instance(sheet, place, record, label) {
  const [, round, prompt, seed, before, after, white, black, reason, guided, file, known] = record
  const card = element("div", "", reason ? "instance dropped" : "instance"), facts = element("div", "")
  const thumbnail = element("div", "", "thumbnail")
  Object.assign(thumbnail.style, {width: `${SIDE}px`, height: `${SIDE}px`, background: sheet.complete
    ? `url("${sheet.picture.src}") ${-SIDE * (place % COLUMNS)}px ${-SIDE * Math.floor(place / COLUMNS)}px` : "#ccc"})
  facts.append(element("div", reason ? `dropped: ${reason}` : "kept", "verdict"), element("div", prompt))
  facts.append(element("div", `${file.replace(/\.png$/, "")}: round ${round}, seed ${seed}`))
  if (white !== null || black !== null)
    facts.append(element("div", `CLIP ${white ?? "–"} on white, ${black ?? "–"} on black`))
  if (before !== null || after !== null) facts.append(element("div", `${CRITERIA[label]} ${before ?? "–"} → ${after ?? "–"}`))
  else if (guided !== null) facts.append(element("div", guided ? "guided" : "not guided"))
  for (const [name, value] of Object.entries(known)) facts.append(element("div", `${name} ${value}`))
  const shown = PASTED[label].filter(([name]) => name === file).map(([, round, number]) => `${number} of round ${round}`)
  if (shown.length) {
    const link = element("a", `training image ${shown.join(", ")}`)
    link.href = "#training"
    facts.append(element("div", "pasted into "))
    facts.lastChild.append(link)
  }
  card.append(thumbnail, facts)
  return card
}

async function openClass(id) {
  const row = body.querySelector(`tr[data-id="${id}"]`)
  if (!row) return
  const instances = opened.querySelector(".instances"), names = row.dataset.sheets.split(" ").filter(Boolean)
  opened.querySelector("h2").textContent = row.cells[0].textContent
  const heads = [...table.tHead.rows[0].cells], facts = [...row.cells].map((cell, i) => [heads[i].textContent, cell.textContent])
  opened.querySelector(".facts").textContent = facts.slice(1).filter(([, text]) => text).map(pair => pair.join(": ")).join(" · ")
  instances.replaceChildren()
  if (!opened.open) opened.showModal()
  await Promise.all(names.map(loadSheet))
  if (location.hash !== `#class=${id}`) return  // another one was opened meanwhile
  let run = ""
  for (const name of names) {
    const sheet = loaded.get(name), label = name.split("/").at(-2)
    if (SEVERAL && label !== run) instances.append(element("h3", run = label))
    if (!sheet) instances.append(element("p", `${name}.js is missing beside this page: write the report again`))
    else for (const [place, record] of sheet.records.entries())
      if (record[0] === id) instances.append(instance(sheet, place, record, label))
  }
  if (!names.length) instances.append(element("p", "Nothing was drawn for this class."))
  opened.dataset.ready = id
}

function followHash() {
  const match = location.hash.match(/^#class=(\d+)$/)
  if (match) openClass(Number(match[1]))
  else if (opened.open) opened.close()
}
addEventListener("hashchange", followHash)
opened.addEventListener("close", () => { if (location.hash.startsWith("#class=")) history.replaceState(null, "", "#classes") })
followHash()
