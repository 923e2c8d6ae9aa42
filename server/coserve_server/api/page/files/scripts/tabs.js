// The two views, as tabs: https://www.w3.org/WAI/ARIA/apg/patterns/tabs/

import { $ } from "./dom.js";

const TABS = ["try", "live"];

/** Show the view that the address names, and call `shown(name)` whenever it changes. */
export function watchTabs(shown) {
  const show = (name) => {
    for (const tab of TABS) {
      const chosen = tab === name;
      $(`tab-${tab}`).ariaSelected = String(chosen);
      $(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
      $(tab).hidden = !chosen;
    }
    shown(name);
  };
  const named = () => (TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : TABS[0]);
  TABS.forEach((tab, index) => {
    $(`tab-${tab}`).addEventListener("click", () => {
      history.replaceState(null, "", `#${tab}`);
      show(tab);
    });
    $(`tab-${tab}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = { Home: 0, End: TABS.length - 1 }[event.key] ?? (step && (index + step + TABS.length) % TABS.length);
      if (next === undefined) return;
      event.preventDefault();
      $(`tab-${TABS[next]}`).focus();
      $(`tab-${TABS[next]}`).click();
    });
  });
  addEventListener("hashchange", () => show(named()));
  show(named());
}
