// Copying of the link.

/**
 * @param {string} link
 * @returns {Promise<string>} what became of it, in words.
 */
export async function copied(link) {
  try {
    // Browsers have no clipboard for pages that came unencrypted from another machine.
    if (!navigator.clipboard) throw new DOMException("no clipboard", "NotAllowedError");
    await navigator.clipboard.writeText(link);
    return "The link is copied. It holds the text, and sends it to nobody.";
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    return "The browser does not let this page copy: copy the link from the address bar.";
  }
}
