// CodeMirror is loaded late and used in one place: no types.
declare const library: any;
export = library;
