// Search in a site that is opened from the disk: browsers start no workers from files, so a frame takes the worker's
// place. Where a server serves the site, the browser's own workers are used.
class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    document.body.append(this.frame);
    this.inside = this.frame.contentWindow;
    this.inside.postMessage = (data) => {
      const told = new MessageEvent("message", { data });
      this.dispatchEvent(told);
      if (this.onmessage) this.onmessage(told);
    };
    this.inside.importScripts = (...urls) =>
      urls.reduce((before, next) => before.then(() => this.load(next)), Promise.resolve());
    this.ready = this.load(url);
  }

  load(url) {
    return new Promise((done, failed) => {
      const script = this.inside.document.createElement("script");
      script.src = url;
      script.onload = done;
      script.onerror = failed;
      this.inside.document.body.append(script);
    });
  }

  postMessage(data) {
    this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
  }

  terminate() {
    this.frame.remove();
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = FrameWorker; // asked for by the worker's script
  window.Worker = FrameWorker;
}
