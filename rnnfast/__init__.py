"""rnnfast: fused recurrent layers (Elman RNN, LSTM, GRU) for CPUs."""
