package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// WorkerFlag is the first argument that makes the program a worker: a process of its own that a scenario talks to in lines of JSON on
// its standard input and output, and that ends when its input does.
const WorkerFlag = "-worker"

// work is what a kind of worker does: it answers each request until there is none left.
type work func(ctx context.Context, addr string, l *line) error

func workers() map[string]work {
	return map[string]work{"cold": coldWorker, "event": eventWorker, "footprint": footprintWorker, "filterlife": filterLifeWorker, "ttl": ttlWorker}
}

// Work runs this process as a worker: args are its kind and the address of Redis (empty for a kind that needs none).
func Work(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("a worker takes its kind and an address")
	}
	w, ok := workers()[args[0]]
	if !ok {
		return fmt.Errorf("no kind of worker %q", args[0])
	}
	err := w(ctx, args[1], newLine(in, out))
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// line is one end of the conversation with a worker.
type line struct {
	in  *json.Decoder
	out *json.Encoder
}

func newLine(in io.Reader, out io.Writer) *line {
	return &line{json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)}
}

// hear reads one message; io.EOF when the other end has closed.
func (l *line) hear(v any) error { return l.in.Decode(v) }

// say writes one message.
func (l *line) say(v any) error { return l.out.Encode(v) }

// child is a worker process and our end of the line to it.
type child struct {
	*line
	cmd  *exec.Cmd
	in   io.Closer
	kind string
}

// startWorker starts this program again as a worker. What it writes to its standard error goes to ours.
func startWorker(ctx context.Context, kind, addr string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, WorkerFlag, kind, addr)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &child{newLine(out, in), cmd, in, kind}, nil
}

// ask sends a request and waits for its answer; both may be nil: nothing is sent or read.
func (c *child) ask(request, answer any) error {
	if request != nil {
		if err := c.say(request); err != nil {
			return fmt.Errorf("worker %s: %w", c.kind, err)
		}
	}
	if answer != nil {
		if err := c.hear(answer); err != nil {
			return fmt.Errorf("worker %s: %w", c.kind, err)
		}
	}
	return nil
}

// stop closes the worker's input and waits for its end.
func (c *child) stop() error {
	c.in.Close() //nolint:errcheck // the process may have ended
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("worker %s: %w", c.kind, err)
	}
	return nil
}
