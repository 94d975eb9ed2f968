"""Uses every tab of the page in headless Chromium and takes screenshots.

  bash launch/serve.sh --checkpoint=shapes:gen3 --compare=shapes:gen2 &
  python -m tests.campaigns.page_browser --url=http://127.0.0.1:8000/ui/ --out=screenshots

Needs the package playwright and a Chromium (--chromium). Ends with status 1 if a tab shows no result, or if
the page asks another host for anything.
"""

import argparse
import io
import pathlib
import sys
import urllib.parse

from PIL import Image
from playwright import sync_api

_WAIT = 120_000  # milliseconds for a result; a first one may compile


class Visitor:
  """Fills in the tabs."""

  def __init__(self, page: sync_api.Page, out: pathlib.Path):
    self._page, self._out, self.hosts = page, out, set()
    page.on("request", lambda request: self.hosts.add(urllib.parse.urlsplit(request.url).hostname))

  def visit(self, url: str) -> None:
    """Opens the page and uses one tab after another."""
    self._page.goto(url)
    self._fill("Prompt", "a yellow cross and a red square")
    self._fill("Seed", "0")
    self._run("Generate", "s per image")
    made = self._result()
    self._tab("Edit")
    self._upload(0, made)
    self._fill("Instruction", "make the yellow cross blue")
    self._fill("Seed", "0")
    self._run("Edit", "s per image")
    edited = self._result()
    self._tab("Reconstruct")
    self._upload(1, edited)
    self._run("Reconstruct", "PSNR")
    self._tab("Chat")
    self._upload(2, edited)
    for question in ("What colour is the cross?", "How many objects are there?"):
      self._fill("Question", question)
      self._page.get_by_role("button", name="Ask").click()
      self._page.wait_for_function(
          "text => document.querySelector('.message.bot') && "
          "[...document.querySelectorAll('.message.user')].some(m => m.innerText.includes(text))",
          arg=question)
      self._page.wait_for_timeout(3000)
    self._shot("Chat")
    self._tab("Compare")
    self._fill("Prompt", "a large blue circle left of a green triangle")
    self._fill("Seed", "3")
    self._run("Compare", "for both")
    self._tab("Generate")
    self._fill("Prompt", " ")
    self._page.get_by_role("button", name="Generate", exact=True).click()
    self._seen("the prompt is empty")
    self._shot("error")

  def _tab(self, name: str) -> None:
    self._page.get_by_role("tab", name=name).click()
    self._page.wait_for_timeout(500)

  def _fill(self, label: str, text: str) -> None:
    self._page.get_by_label(label).locator("visible=true").first.fill(text)

  def _upload(self, number: int, png: bytes) -> None:
    files = {"name": "a.png", "mimeType": "image/png", "buffer": png}
    self._page.locator("input[type=file]").nth(number).set_input_files(files)
    self._page.wait_for_timeout(2000)

  def _run(self, button: str, result: str) -> None:
    self._page.get_by_role("button", name=button, exact=True).click()
    self._seen(result)
    self._shot(button)

  def _seen(self, text: str) -> None:
    self._page.get_by_text(text).locator("visible=true").first.wait_for(timeout=_WAIT)

  def _shot(self, name: str) -> None:
    self._page.wait_for_timeout(700)
    self._page.screenshot(path=self._out / f"{name.lower()}.png", full_page=True)

  def _result(self) -> bytes:
    """The file of the gallery's first image, which must be PNG."""
    source = self._page.locator(".grid-container img").locator("visible=true").first.get_attribute("src")
    data = self._page.request.get(source).body()
    assert Image.open(io.BytesIO(data)).format == "PNG"
    return data


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--url", default="http://127.0.0.1:8000/ui/")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--chromium", default="/usr/bin/chromium")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
    visitor = Visitor(browser.new_page(viewport={"width": 1280, "height": 1000}), args.out)
    visitor.visit(args.url)
    browser.close()
  foreign = visitor.hosts - {urllib.parse.urlsplit(args.url).hostname, None, ""}
  print(f"every tab was used; screenshots are in {args.out}; other hosts: {sorted(foreign) or 'none'}")
  sys.exit(bool(foreign))


if __name__ == "__main__":
  main()
