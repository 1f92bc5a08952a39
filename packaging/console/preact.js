// What our modules take from the libraries: one file, so that a page asks for it once.
import { Fragment, h, render } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { batch, computed, effect, signal, useComputed, useSignal } from "@preact/signals";
import htm from "htm";

const html = htm.bind(h);
export {
  batch, computed, effect, Fragment, h, html, render, signal,
  useComputed, useEffect, useLayoutEffect, useMemo, useRef, useSignal, useState,
};
