package layers

import (
	"context"

	"github.com/tiercache/tiercache/internal/borrowed"
)

// tellScript publishes an event by itself.
var tellScript = borrowed.NewScript("tell", "redis.call('PUBLISH', ARGV[1], ARGV[2])\nreturn { 1, 0 }")

// tellFirst publishes the events of an invalidation before it deletes anything: what the rule broken.Order forbids. It runs only where
// that rule is left out on purpose.
func (s *Space) tellFirst(ctx context.Context, kind byte, ids []string) {
	s.each(ctx, ids, func(i int, key string) *scriptCall {
		return &scriptCall{script: tellScript, keys: []string{key}, args: []any{s.channel, s.r.bus.event(s, kind, ids[i])}}
	}, func(int, scriptReply, error) {})
}
