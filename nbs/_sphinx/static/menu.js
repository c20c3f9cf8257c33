/* The menu of colours opens below its button, and closes by a choice, Escape or a click elsewhere. It is all that these pages need of the theme's Bootstrap */
for (const menu of document.querySelectorAll('.theme-switch-container')) {
  const button = menu.querySelector('.theme-switch-button')
  const list = menu.querySelector('.dropdown-menu')
  const choices = [...list.querySelectorAll('button')]
  const isOpen = () => list.classList.contains('show')
  const show = open => {
    list.classList.toggle('show', open)
    button.setAttribute('aria-expanded', open)
  }
  list.setAttribute('data-bs-popper', 'static')  // what the theme's styles ask for before they place a menu
  show(false)
  button.addEventListener('click', () => show(!isOpen()))
  list.addEventListener('click', () => show(false))
  document.addEventListener('click', event => menu.contains(event.target) || show(false))
  menu.addEventListener('focusout', event => event.relatedTarget && !menu.contains(event.relatedTarget) && show(false))
  menu.addEventListener('keydown', event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key]
    if (event.key === 'Escape' && isOpen()) {
      event.preventDefault()  // or the panel around the menu would close too
      event.stopPropagation()
      show(false)
      button.focus()
    } else if (step) {
      event.preventDefault()
      show(true)
      const now = choices.indexOf(document.activeElement)
      const next = now < 0 ? (step > 0 ? 0 : -1) : Math.min(Math.max(now + step, 0), choices.length - 1)
      choices.at(next).focus()
    }
  })
}
