// The types of what preact.js packs, for the check of the console's own modules.
export { Fragment, h, render } from "preact";
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
export { batch, computed, effect, signal, useComputed, useSignal } from "@preact/signals";
export type { Signal } from "@preact/signals";
export const html: (strings: TemplateStringsArray, ...values: any[]) => any;
