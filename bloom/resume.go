package bloom

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"iter"
	"time"
)

const (
	// checkpointEvery is how often a build stores how far it came: what a crash costs. Chosen; not tuned.
	checkpointEvery = 30 * time.Second
	// checkpointShare bounds the time that goes into it: after each it is let be for so many times as long as it took. Chosen; not tuned.
	checkpointShare = 20
	// maxPlace bounds the bytes of a place: a few columns of a key. Chosen; not tuned.
	maxPlace = 1024
)

// ErrPlace is what Pages return, wrapped or not, for a place that they cannot go on from, since an older release or another scan gave it: a build
// that was resumed there begins anew, any other ends with it.
var ErrPlace = errors.New("bloom: the scan cannot go on from this place")

// Pages are a scan of all existing keys in an order that does not change: some of the keys that come after a place, and the place behind them.
// Places are in words of the source's own, such as the last primary key, up to 1,024 bytes; "" is the beginning, and as next says that these keys
// were the last. A page may be empty, but the place must move.
//
// A row's place must not change while it exists, else it must be announced like a new one. A place must mean the same in every process and for
// as long as checkpoints live: see CheckpointStore. Pages must end with ctx.
type Pages func(ctx context.Context, after string) (keys []string, next string, err error)

// CheckpointStore is a Store that also keeps how far a build came. Implementations MUST be safe for concurrent calls.
type CheckpointStore interface {
	Store
	// SaveCheckpoint keeps data of a build of that generation, which holds all announcements up to cursor, in the place of what was kept
	// before: whole or not at all. It returns false and does nothing where one of a later generation is kept. What is kept MUST end by itself.
	SaveCheckpoint(ctx context.Context, generation uint64, cursor string, data []byte) (stored bool, err error)
	// LoadCheckpoint returns what was kept last; nil data if there is nothing, or if a filter of that generation or a later one stands or is
	// doubted.
	LoadCheckpoint(ctx context.Context) (data []byte, generation uint64, cursor string, err error)
	// DropCheckpoint forgets it.
	DropCheckpoint(ctx context.Context) error
}

// BuildFrom is Build from pages. With a CheckpointStore it stores every BuildOptions.Checkpoint how far it came, and goes on where one that was
// cut off, here or in another process, has stored that: whatever ended it. It begins anew where that build was for other Options or a
// shorter ReplicaLag, a filter stands that was begun later, or announcements since are lost. Without such a store it always begins anew. What it
// stores takes as many bytes as the filter, and twice as many for a moment.
//
// The checkpoint is the filter's bits, the place in the source behind the last row in them, and the cursor up to which announcements are in them,
// stored as one. The races:
//
//  1. The scan passes the place of a row. 2. A checkpoint is stored. 3. The row is announced, and commits: the builder has it, the checkpoint does not.
//  4. The builder dies, and another goes on behind the row's place. Closed because announcements from the checkpoint's cursor on are
//     read before anything else; if they are not all there any more, the scan begins anew.
//  1. Builder A stores a checkpoint. 2. A is paused and loses its lock; B goes on from there and stores a later checkpoint. 3. A stores its
//     next one, which is behind B's. 4. Both die, and C goes on from A's. Harmless: each checkpoint is right by itself, and so is the filter of
//     whoever ends; they are of one generation, the moment when the first of them began.
//  1. A builds from a checkpoint whose filter was doubted or superseded meanwhile. Closed because a checkpoint has the generation of
//     its build's beginning, and one that is not later than what stands is no checkpoint.
func (g *Guard) BuildFrom(ctx context.Context, pages Pages, o BuildOptions, st Store) (BuildReport, error) {
	if err := o.check(pages != nil, st != nil); err != nil {
		return BuildReport{}, err
	}
	return g.build(ctx, &scan{pages: pages, options: o, store: st})
}

func (s *scan) readPages(ctx context.Context) error {
	for {
		keys, next, err := s.pages.after(ctx, s.place)
		if err != nil {
			return s.failed(err)
		}
		for _, key := range keys {
			if err := s.row(ctx, key); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		s.place = next
		s.checkpoint(ctx)
	}
}

// checkpoints is where they are kept; nil: nowhere.
func (s *scan) checkpoints() CheckpointStore {
	if s.pages == nil || s.options.Checkpoint < 0 {
		return nil
	}
	st, _ := s.store.(CheckpointStore)
	return st
}

// checkpoint stores how far the scan came, if that is due. If it cannot be stored, more is read again should the build be cut off: nothing else.
func (s *scan) checkpoint(ctx context.Context) {
	st, every := s.checkpoints(), s.options.Checkpoint
	if every == 0 {
		every = checkpointEvery
	}
	began := time.Now()
	if s.keep.IsZero() {
		s.keep = s.started.Add(every)
	}
	if st == nil || began.Before(s.keep) {
		return
	}
	stored, err := st.SaveCheckpoint(ctx, s.next.generation, s.next.cursor, s.encode())
	if err == nil && stored {
		s.kept = s.count
	}
	s.keep = time.Now().Add(max(every, checkpointShare*time.Since(began)))
}

// resume takes over what an earlier build has left, if it can be gone on with.
func (s *scan) resume(ctx context.Context) (resumed bool, err error) {
	st, g := s.checkpoints(), s.guard
	if st == nil {
		return false, nil
	}
	data, generation, cursor, err := st.LoadCheckpoint(ctx)
	if err != nil {
		return false, fmt.Errorf("bloom: looking for a checkpoint: %w", err)
	}
	c, ok := parseCheckpoint(data)
	if !ok || c.reach < s.options.reach() || !g.wants(c.builder, generation) {
		return false, nil
	}
	s.builder, s.next = c.builder, &belief{cursor: cursor, generation: generation}
	g.receive(s.builder)
	switch err := g.follow(ctx, st, s.next, s.builder); {
	case errors.Is(err, ErrBehind):
		return false, nil
	case err != nil:
		return false, err
	}
	s.count, s.resumed, s.kept, s.place = c.rows, c.rows, c.rows, c.place
	return true, nil
}

// wants reports whether b, begun at generation, may become this guard's filter.
func (g *Guard) wants(b *builder, generation uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return b.options == g.options && uint64(b.bits.Cap()) == g.options.size() && generation > g.refused
}

// settle forgets the checkpoint of a build that ended well, or whose scan cannot be trusted. Any other may be gone on with.
func (s *scan) settle(ctx context.Context, err error) {
	if st := s.checkpoints(); st != nil && s.kept > 0 && (err == nil || errors.Is(err, ErrImplausible)) {
		_ = st.DropCheckpoint(context.WithoutCancel(ctx)) // else it ends by itself; it is of no later generation than the filter
	}
}

// A checkpoint is a snapshot of the bits so far, and behind it, big-endian:
//
//	0  the place            end-32  rows    end-16  length of the place    end-12  magic "tcbc"
//	                        end-24  reach   end-14  version                end-8   CRC-64 (ECMA) of the place and all since
const (
	checkpointMagic   = "tcbc"
	checkpointVersion = 1
	checkpointTail    = 32
)

// checkpoint is what an earlier build has left.
type checkpoint struct {
	builder *builder
	rows    uint64
	reach   time.Duration
	place   string
}

// encode is the scan's checkpoint. Whatever is added meanwhile, to the builder or by another checkpoint, does no harm: its bits may be in it
// before their time.
func (s *scan) encode() []byte {
	data := s.builder.encode(len(s.place) + checkpointTail)
	body := len(data)
	seal(data)
	data = append(data, s.place...)
	data = binary.BigEndian.AppendUint64(data, s.count)
	data = binary.BigEndian.AppendUint64(data, uint64(s.options.reach())) //nolint:gosec // not negative
	data = binary.BigEndian.AppendUint16(data, uint16(len(s.place)))      //nolint:gosec // at most maxPlace
	data = append(binary.BigEndian.AppendUint16(data, checkpointVersion), checkpointMagic...)
	return binary.BigEndian.AppendUint64(data, crc64.Checksum(data[body:], checksumTable))
}

func parseCheckpoint(data []byte) (c checkpoint, ok bool) {
	if len(data) < checkpointTail {
		return c, false
	}
	tail := data[len(data)-checkpointTail:]
	place := int(binary.BigEndian.Uint16(tail[16:]))
	body := len(data) - checkpointTail - place
	if string(tail[20:24]) != checkpointMagic || binary.BigEndian.Uint16(tail[18:]) != checkpointVersion || body < 0 ||
		binary.BigEndian.Uint64(tail[24:]) != crc64.Checksum(data[body:len(data)-8], checksumTable) {
		return c, false
	}
	f, err := ReadSnapshot(data[:body])
	if err != nil {
		return c, false
	}
	return checkpoint{
		builder: &builder{options: f.options, seed: f.seed, bits: f.state.Load().base}, // f is nobody else's
		rows:    binary.BigEndian.Uint64(tail),
		reach:   time.Duration(binary.BigEndian.Uint64(tail[8:])), //nolint:gosec // was one
		place:   string(data[body : body+place]),
	}, true
}

// encode is a snapshot of the bits so far, without its checksum, with room for so many bytes more.
func (b *builder) encode(more int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return encode(b.options, b.seed, b.bits, more)
}

// Rows are the keys of all pages: for a build that cannot be gone on with.
func (p Pages) Rows(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for place := ""; ; {
			keys, next, err := p.after(ctx, place)
			if err != nil {
				yield("", err)
				return
			}
			for _, key := range keys {
				if !yield(key, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			place = next
		}
	}
}

// after is a page whose place is found right.
func (p Pages) after(ctx context.Context, place string) (keys []string, next string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	keys, next, err = p(ctx, place)
	switch {
	case err != nil:
		return nil, "", err
	case next != "" && next == place:
		return nil, "", fmt.Errorf("the page behind %q ends where it began", next)
	case len(next) > maxPlace:
		return nil, "", fmt.Errorf("a place of %d bytes, at most %d", len(next), maxPlace)
	}
	return keys, next, nil
}
