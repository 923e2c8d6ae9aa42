// Ways to give a photograph: choose, drop, paste, an example, the webcam.

import { $, make } from "./dom.js";

const EXAMPLES = ["automobile-0016", "cat-0014", "deer-0012", "frog-0016", "horse-0002", "ship-0000"];
const PLACE = new URL("../examples/", import.meta.url);

/** Load the example that the race sends. */
export async function loadExample(name = EXAMPLES[0]) {
  const response = await fetch(new URL(`${name}.jpg`, PLACE));
  return new File([await response.blob()], `${name}.jpg`, { type: "image/jpeg" });
}

/** Call `take(file)` for every photograph given, and `complain(text)` for what is none. */
export function watchPhotographs(take, complain) {
  const takeFirst = (files) => {
    if (files.length > 1) complain(`The page shows one photograph at a time: this is ${files[0].name}.`);
    press(null);
    take(files[0]);
  };
  $("file").addEventListener("change", () => $("file").files.length && takeFirst($("file").files));
  watchDrops(takeFirst, complain);
  document.addEventListener("paste", (event) => {
    if (event.target.matches?.("input")) return;
    const files = event.clipboardData.files;
    if (files.length) takeFirst(files);
    else complain("The clipboard holds no picture. Copy the picture itself, not its address.");
  });
  showExamples(take, complain);
  watchWebcam((file) => takeFirst([file]), complain);
}

function watchDrops(takeFirst, complain) {
  const over = (shown) => $("drop").classList.toggle("over", shown);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? over(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    const files = event.dataTransfer.files;
    if (files.length) takeFirst(files);
    else complain("That was not a file. Save the picture first, then drop the file.");
  });
}

function press(chosen) {
  for (const button of $("examples").children) button.ariaPressed = String(button === chosen);
}

function showExamples(take, complain) {
  for (const name of EXAMPLES) {
    const src = new URL(`${name}.jpg`, PLACE).href;
    const image = make("img", { src, width: 60, height: 60, alt: `Example: ${name.split("-")[0]}` });
    const button = make("button", { type: "button", ariaPressed: "false" }, image);
    button.addEventListener("click", async () => {
      press(button);
      try {
        take(await loadExample(name));
      } catch {
        complain("The example did not load: the server does not answer.");
      }
    });
    $("examples").append(button);
  }
}

function watchWebcam(take, complain) {
  const video = $("webcam-video");
  const stop = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    $("webcam-live").hidden = true;
    $("webcam-open").hidden = false;
  };
  // Browsers have it only on this machine and over HTTPS.
  $("webcam").hidden = !navigator.mediaDevices?.getUserMedia;
  $("webcam-open").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
    } catch (error) {
      const why = error.name === "NotAllowedError" ? "the browser does not allow it" : "none was found";
      complain(`No webcam: ${why}.`);
      return;
    }
    $("webcam-open").hidden = true;
    $("webcam-live").hidden = false;
    $("webcam-take").focus();
  });
  $("webcam-close").addEventListener("click", () => {
    stop();
    $("webcam-open").focus();
  });
  $("webcam-take").addEventListener("click", () => {
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    if (!canvas.width) return complain("The webcam shows no picture yet.");
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => take(new File([blob], "webcam.jpg", { type: "image/jpeg" })), "image/jpeg", 0.92);
  });
}

/** Show the photograph beside its answer. */
export function preview(file) {
  const image = $("preview");
  const reader = new FileReader();
  reader.onload = () => {
    image.onload = () => {
      image.classList.toggle("tiny", image.naturalWidth < 96);
      image.hidden = false;
    };
    // HEIC and TIFF, which the server may read and few browsers show.
    image.onerror = () => (image.hidden = true);
    image.alt = `The photograph ${file.name}`;
    image.src = reader.result;
  };
  reader.onerror = () => (image.hidden = true);
  reader.readAsDataURL(file);
}
