package main

import (
	"fmt"
	"io"
	"os"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// notes tells what is under way: a bar for every step on a terminal, else one line a step.
type notes struct {
	w        io.Writer
	terminal bool
	current  *note
}

func newNotes(w io.Writer) *notes {
	f, ok := w.(*os.File)
	return &notes{w: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// note is one step. Its methods may be called concurrently.
type note struct{ bar *progressbar.ProgressBar }

// step ends the step before it and begins one of size units.
func (n *notes) step(what string, size int) *note {
	n.close()
	if !n.terminal {
		_, _ = fmt.Fprintln(n.w, what+" ...")
		n.current = &note{bar: progressbar.DefaultSilent(int64(size))}
		return n.current
	}
	n.current = &note{bar: progressbar.NewOptions(size,
		progressbar.OptionSetWriter(n.w),
		progressbar.OptionSetDescription(fmt.Sprintf("%-40s", what)),
		progressbar.OptionSetWidth(20),
		progressbar.OptionShowCount(),
		progressbar.OptionClearOnFinish(),
	)}
	return n.current
}

// close takes the bar of a step that did not end off the screen.
func (n *notes) close() {
	if n.current != nil {
		n.current.done()
		n.current = nil
	}
}

// set says how far the step has come. A bar that cannot be drawn is no reason to stop.
func (n *note) set(done int) { _ = n.bar.Set(done) }

func (n *note) done() { _ = n.bar.Finish() }
