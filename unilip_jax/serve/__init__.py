"""Serves a checkpoint over HTTP with OpenAI's API, and as a page: docs/serving.md.

`options` what a server offers and refuses; `bodies`, `uploads`, `fields` read requests; `image_requests`,
`chat_requests` check them; `scheduler` batches rows on one worker thread, `engine` runs the batches;
`service` joins these for `app` (HTTP) and `page` (gradio); `server` runs uvicorn and stops it.
"""
