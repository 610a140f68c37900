package borrowed

import (
	"context"
	"crypto/sha1" //nolint:gosec // the name Redis gives a script; nothing secret hangs on it
	"encoding/hex"

	"github.com/redis/go-redis/v9"
)

// Script is a Lua program that Redis runs as one step.
type Script struct {
	Name string
	Text string

	sha string // hex SHA-1 of Text, by which Redis knows it
}

// NewScript returns the script of that text.
func NewScript(name, text string) *Script {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // as above
	return &Script{Name: name, Text: text, sha: hex.EncodeToString(sum[:])}
}

// Command returns a new call of s as EVALSHA, or as EVAL with its text. keys and args must not be changed while the command is in use.
func (s *Script) Command(text bool, keys []string, args []any) *redis.Cmd {
	all := make([]any, 0, 3+len(keys)+len(args))
	if text {
		all = append(all, "eval", s.Text)
	} else {
		all = append(all, "evalsha", s.sha)
	}
	all = append(all, len(keys))
	for i := range keys {
		all = append(all, &keys[i])
	}
	all = append(all, args...)
	cmd := redis.NewCmd(context.Background(), all...)
	cmd.SetFirstKeyPos(3)
	return cmd
}
