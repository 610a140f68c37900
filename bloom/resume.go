package bloom

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"time"
)

// maxPlace bounds the bytes of a place: a few columns of a key. Chosen; not tuned.
const maxPlace = 1024

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
	return g.build(ctx, &scan{pages: pages, options: o}, st)
}

// checkpoints is where they are kept; nil: nowhere.
func (b *snapshotBuild) checkpoints() CheckpointStore {
	st, _ := b.store.(CheckpointStore)
	return st
}

func (b *snapshotBuild) save(ctx context.Context) (stored bool, err error) {
	st := b.checkpoints()
	if st == nil {
		return false, nil
	}
	stored, err = st.SaveCheckpoint(ctx, b.next.generation, b.next.cursor, b.encode())
	return err == nil && stored, nil
}

func (b *snapshotBuild) resume(ctx context.Context) (*checkpoint, error) {
	st, g := b.checkpoints(), b.guard
	if st == nil {
		return nil, nil
	}
	data, generation, cursor, err := st.LoadCheckpoint(ctx)
	if err != nil {
		return nil, fmt.Errorf("bloom: looking for a checkpoint: %w", err)
	}
	left := b.parse(data)
	if left == nil || left.reach < b.options.reach() || !g.wants(b.builder, generation) {
		return nil, nil
	}
	b.next = &belief{cursor: cursor, generation: generation}
	g.receive(b.builder)
	switch err := g.follow(ctx, st, b.next, b.builder); {
	case errors.Is(err, ErrBehind):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return left, nil
}

// wants reports whether b, begun at generation, may become this guard's filter.
func (g *Guard) wants(b *builder, generation uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return b.options == g.options && uint64(b.bits.Cap()) == g.options.size() && generation > g.refused
}

// settle forgets the checkpoint of a build that ended well, or whose scan cannot be trusted. Any other may be gone on with.
func (b *snapshotBuild) settle(ctx context.Context, err error) {
	if st := b.checkpoints(); st != nil && b.resumable() && b.kept > 0 && (err == nil || errors.Is(err, ErrImplausible)) {
		_ = st.DropCheckpoint(context.WithoutCancel(ctx)) // else it ends by itself; it is of no later generation than the filter
	}
}

// encode is the checkpoint: a snapshot of the bits so far, and how far the scan came. Whatever is added meanwhile, to the builder or by another
// checkpoint, does no harm: its bits may be in it before their time.
func (b *snapshotBuild) encode() []byte {
	data := b.builder.encode(len(b.place) + checkpointTail)
	body := len(data)
	seal(data)
	return b.appendPlace(data, body)
}

// parse reads it; nil if it is none.
func (b *snapshotBuild) parse(data []byte) *checkpoint {
	bits, left := parsePlace(data, true)
	if left == nil {
		return nil
	}
	f, err := ReadSnapshot(bits)
	if err != nil {
		return nil
	}
	b.builder = &builder{options: f.options, seed: f.seed, bits: f.state.Load().base} // f is nobody else's
	return left
}

// What a checkpoint says of the scan, behind whatever else it has, big-endian:
//
//	0  the place            end-32  rows    end-16  length of the place    end-12  magic "tcbc"
//	                        end-24  reach   end-14  version                end-8   CRC-64 (ECMA) of what has no checksum of its own
const (
	checkpointMagic   = "tcbc"
	checkpointVersion = 1
	checkpointTail    = 32
)

// checkpoint is how far an earlier build came.
type checkpoint struct {
	rows  uint64
	reach time.Duration
	place string
}

// appendPlace appends to data how far the scan came; the bytes from unsealed on have no checksum yet.
func (s *scan) appendPlace(data []byte, unsealed int) []byte {
	data = append(data, s.place...)
	data = binary.BigEndian.AppendUint64(data, s.count)
	data = binary.BigEndian.AppendUint64(data, uint64(s.options.reach())) //nolint:gosec // not negative
	data = binary.BigEndian.AppendUint16(data, uint16(len(s.place)))      //nolint:gosec // at most maxPlace
	data = append(binary.BigEndian.AppendUint16(data, checkpointVersion), checkpointMagic...)
	return binary.BigEndian.AppendUint64(data, crc64.Checksum(data[unsealed:], checksumTable))
}

// parsePlace reads what appendPlace has appended, and returns what is before it, which has a checksum of its own if sealed. c is nil if data is
// nothing of the kind.
func parsePlace(data []byte, sealed bool) (before []byte, c *checkpoint) {
	if len(data) < checkpointTail {
		return nil, nil
	}
	tail := data[len(data)-checkpointTail:]
	place := int(binary.BigEndian.Uint16(tail[16:]))
	body := len(data) - checkpointTail - place
	if string(tail[20:24]) != checkpointMagic || binary.BigEndian.Uint16(tail[18:]) != checkpointVersion || body < 0 {
		return nil, nil
	}
	unsealed := 0
	if sealed {
		unsealed = body
	}
	if binary.BigEndian.Uint64(tail[24:]) != crc64.Checksum(data[unsealed:len(data)-8], checksumTable) {
		return nil, nil
	}
	return data[:body], &checkpoint{
		rows:  binary.BigEndian.Uint64(tail),
		reach: time.Duration(binary.BigEndian.Uint64(tail[8:])), //nolint:gosec // was one
		place: string(data[body : body+place]),
	}
}

// encode is a snapshot of the bits so far, without its checksum, with room for so many bytes more.
func (b *builder) encode(more int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return encode(b.options, b.seed, b.bits, more)
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
		return nil, "", errors.New("a page ends where it began")
	case len(next) > maxPlace:
		return nil, "", fmt.Errorf("a place of %d bytes, at most %d", len(next), maxPlace)
	}
	return keys, next, nil
}
