// The token of this tab. It lives in sessionStorage only: it goes when the tab goes, and no other site sees it.

const KEPT_AS = "lenskeep.token";
let token = "";

/** Take a token out of `#token=…` and the address bar at once, or the one of this tab. Say whether a new one came. */
export function adopt() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found !== null) {
    history.replaceState(null, "", location.pathname + location.search);
    keepToken(found.trim());
    return true;
  }
  try {
    token = token || sessionStorage.getItem(KEPT_AS) || "";
  } catch {
    // storage is switched off: the token lives as long as the page
  }
  return false;
}

export function keepToken(value) {
  token = value;
  try {
    if (value) sessionStorage.setItem(KEPT_AS, value);
    else sessionStorage.removeItem(KEPT_AS);
  } catch {
    // as above
  }
}

export function hasToken() {
  return token !== "";
}

export function headers(more = {}, own = token) {
  return own ? { ...more, Authorization: `Bearer ${own}` } : more;
}
